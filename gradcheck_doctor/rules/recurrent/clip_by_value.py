from __future__ import annotations

import math
from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.progress import mild


class ClipByValue(Rule):
    """The gradient is clipped entry by entry, which turns its direction.

    What it measures: rms of the gradient's entries before clipping over the clip value, median over the observed steps: above 1 most entries are cut.

    Why it matters: [0.9, 100] becomes [0.9, 1]: clipping by norm keeps the direction.

    When it is harmless: a value far above the entries never cuts anything.

    Sources: Géron, ch. 11.
    """

    code = "GD402"
    name = "clip-by-value"
    summary = "clipping by value turns the gradient's direction"
    threshold = Threshold(0.5, 20.0, "rms of the entries / clip value", "half of the value: the larger entries are cut", info=1e-3)
    order = 465
    explains = ("GD702", "GD707")
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        events = [e for e in recording.events_of("clip_value") if e.value and e.before is not None]
        if not events:
            return
        ratios = sorted(e.before / math.sqrt(max(recording.trainable_count, 1)) / e.value for e in events if e.before is not None and e.value)
        middle = ratios[len(ratios) // 2]
        yield Measurement(value=middle, location=events[0].span, cap=mild(recording),
                          evidence={"clip_value": events[0].value, "entry_rms_over_value": middle, "steps": len(events)})

    def message(self, m: Measurement) -> str:
        return (f"clipping by value {m.evidence['clip_value']:g} cuts entries whose rms is {m.value:.3g} times that value, so the step loses the "
                "gradient's direction and size; clip by norm")

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("clip-value-to-norm", "Clip by norm, 1.0, instead", kind="clip", span=m.location, arguments={"max_norm": 1.0}),)
