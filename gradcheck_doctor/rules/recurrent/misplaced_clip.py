from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured


class MisplacedClip(Rule):
    """Clipping happens where it has no effect or the wrong one: before backward, or on gradients still multiplied by the scaler.

    What it measures: observed steps on which a clip came with no backward since the last step, or on scaled gradients.

    Why it matters: the gradients that the step uses were not clipped, or clipped at a threshold 65,536 times too small.

    When it is harmless: never, but a single step may be an accident of the loop's order.

    Sources: PyTorch's AMP examples (unscale_ before clipping).
    """

    code = "GD404"
    name = "misplaced-clip"
    summary = "clipping before backward or on scaled gradients"
    threshold = Threshold(2.0, 3.0, "observed steps", "twice is no accident")
    order = 140
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        wrong = [e for e in (*recording.events_of("clip_norm"), *recording.events_of("clip_value")) if e.detail.get("misplaced")]
        if wrong:
            yield Measurement(value=float(len(wrong)), location=wrong[0].span, evidence={"steps": len(wrong), "how": wrong[0].detail["misplaced"]})

    def message(self, m: Measurement) -> str:
        return f"on {m.evidence['steps']} observed steps the gradient was clipped {m.evidence['how']}"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("move-clip", "Clip between backward (after unscale_) and step", kind="clip", span=m.location),)
