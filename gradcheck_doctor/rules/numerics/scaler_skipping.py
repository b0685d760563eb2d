from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.progress import mild

ENOUGH = 50            # steps after the first 200, at least
STUCK = 40             # steps left out one after the other: from 65536 the scale is below 1 after 17


class ScalerSkipping(Rule):
    """The GradScaler leaves out many steps: the scaled gradients overflow again and again.

    What it measures: share of the steps left out of those asked for after the first 200, of which at least 50 are needed; 1 where the last 40 steps
    were left out one after the other. Every step is counted, not only the observed ones.

    Why it matters: a step left out is a batch thrown away, and each one halves the scale, so that small gradients become 0 in float16. A scaler that
    leaves out every step trains nothing, without an error.

    When it is harmless: the first ten to twenty steps, on which the scale finds its size, and one in two thousand later, when it tries to grow. An
    optimizer with fused=True leaves steps out by itself: that is not seen.

    Sources: Micikevicius et al. 2018 (arXiv:1710.03740), dynamic loss scaling; PyTorch's documentation of GradScaler (growth_interval 2000).
    """

    code = "GD806"
    name = "scaler-skipping"
    summary = "the GradScaler leaves out many steps"
    threshold = Threshold(0.1, 0.5, "share of steps left out after the first 200", "a tenth; a scale that has settled costs one step in 2000")
    order = 165
    explains = ("GD702", "GD707", "GD303", "GD802")
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        seen = recording.notes.get("scaler")
        if not seen:
            return
        stuck = seen["skipped_in_a_row"] >= STUCK
        if seen["late_asked"] < ENOUGH and not stuck:
            yield Unmeasured("", f"{seen['asked']} steps of a GradScaler are too few; the first 200 do not count")
            return
        asked, skipped = (seen["asked"], seen["skipped"]) if stuck else (seen["late_asked"], seen["late_skipped"])
        yield Measurement(value=1.0 if stuck else skipped / asked, location=seen["span"], cap=mild(recording),
                          evidence={"asked": asked, "skipped": skipped, "skipped_in_a_row": seen["skipped_in_a_row"]})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        if e["skipped_in_a_row"] >= STUCK:
            return f"the GradScaler left out the last {e['skipped_in_a_row']} steps one after the other: the gradients are never finite and nothing is trained"
        return f"the GradScaler left out {e['skipped']} of {e['asked']} steps ({m.value:.0%}, limit {{limit}}) after the first 200"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("autocast-bf16", "Use bfloat16, whose range is that of float32", kind="other"),)
