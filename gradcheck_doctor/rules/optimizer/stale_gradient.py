from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured


class StaleGradient(Rule):
    """The gradients are never set to zero: each step uses the sum of all gradients since the beginning.

    What it measures: share of the observed steps (after the first three) at which the last step's gradients were still there when backward began.

    Why it matters: the sum grows without bound, and so do the updates.

    When it is harmless: accumulation sets them to zero after each step, which is seen as such.

    Sources: exact.
    """

    code = "GD705"
    name = "stale-gradient"
    summary = "gradients are never set to zero"
    threshold = Threshold(0.9, 0.9, "share of observed steps", "nine of ten")
    order = 130
    explains = ("GD302", "GD305", "GD701", "GD706", "GD707", "GD202", "GD201", "GD301", "GD208", "GD209", "GD303", "GD803", "GD802", "GD801", "GD608",
                "GD304", "GD307")
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        observed = _observed(recording)
        for number, record in enumerate(recording.optimizers):
            watched = [s for s in recording.steps if s.optimizer == number and s.step in observed][3:]
            if len(watched) >= 5:
                share = sum(s.stale_gradient for s in watched) / len(watched)
                yield Measurement(value=share, location=record.stepped, evidence={"share": share, "steps": len(watched)})

    def message(self, m: Measurement) -> str:
        return f"on {m.value:.0%} of {m.evidence['steps']} observed steps the gradients of the step before were still there: zero_grad() is missing"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("zero-grad", "Call optimizer.zero_grad() before backward", kind="optimizer", span=m.location),)


def _observed(recording: Recording) -> set[int]:
    return {row.step for rows in recording.parameter_steps.values() for row in rows}
