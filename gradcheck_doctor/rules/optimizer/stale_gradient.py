from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording, StepRecord
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured

MISSING = 0.9
BEGINNING = 20         # observed steps that tell by themselves


class StaleGradient(Rule):
    """The gradients are never set to zero: each step uses the sum of all gradients since the beginning.

    What it measures: share of the observed steps (after the first three) at which the last step's gradients were still there when backward began;
    of the first twenty of them, if that is more: where the sum has killed the units, later passes add nothing to it.

    Why it matters: the sum grows without bound, and so do the updates.

    When it is harmless: accumulation sets them to zero after each step, which is seen as such.

    Sources: exact.
    """

    code = "GD705"
    name = "stale-gradient"
    summary = "gradients are never set to zero"
    threshold = Threshold(MISSING, MISSING, "share of observed steps", "nine of ten")
    order = 130
    explains = ("GD302", "GD305", "GD701", "GD706", "GD707", "GD202", "GD201", "GD301", "GD208", "GD209", "GD303", "GD803", "GD802", "GD801", "GD608",
                "GD304", "GD307")
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        observed, found = _observed(recording), []
        for number, record in enumerate(recording.optimizers):
            watched = [s for s in recording.steps if s.optimizer == number and s.step in observed][3:]
            if len(watched) >= 5:
                share = max(_share(watched), _share(watched[:BEGINNING]) if len(watched) > BEGINNING else 0.0)
                found.append((share, record.stepped, len(watched)))
        if found:
            share, place, steps = max(found, key=lambda row: row[0])
            several = sum(row[0] >= MISSING for row in found) > 1
            yield Measurement(value=share, location=place, evidence={"share": share, "steps": steps, "several": several})

    def message(self, m: Measurement) -> str:
        return f"on {m.value:.0%} of {m.evidence['steps']} observed steps the gradients of the step before were still there: no zero_grad() between them"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        own = bool(recording.optimizers) and all(o.own for o in recording.optimizers)
        what = "zero_grad() of each optimizer" if m.evidence["several"] else "the model's zero_grad()" if own else "optimizer.zero_grad()"
        return (Prescription("zero-grad", f"Call {what} before backward", kind="optimizer", span=m.location,
                             arguments={"several": True} if m.evidence["several"] else {}),)


def _share(steps: Sequence[StepRecord]) -> float:
    return sum(s.stale_gradient for s in steps) / len(steps)


def _observed(recording: Recording) -> set[int]:
    return {row.step for rows in recording.parameter_steps.values() for row in rows}
