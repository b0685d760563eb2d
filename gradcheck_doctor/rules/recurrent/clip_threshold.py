from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.progress import mild

STARVED = 10.0         # usual norm over the threshold from which on what is left is no step


class ClipThreshold(Rule):
    """The clip threshold is so low that nearly every step is clipped: training runs on normalised gradients.

    What it measures: share of at least 20 observed steps on which the norm before clipping was above the threshold.

    Why it matters: the step size then no longer depends on the gradient.

    When it is harmless: on purpose, and under Adam nearly always: info. A warning where plain SGD is clipped to a tenth of its usual gradient or less
    and the loss does not fall.

    Sources: Pascanu et al. 2013: choose it from the norms seen.
    """

    code = "GD403"
    name = "clip-threshold"
    summary = "nearly every step is clipped"
    threshold = Threshold(0.95, None, "share of clipped steps", "95 %")
    order = 486
    explains = ("GD405", "GD702", "GD707")
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        events = [e for e in recording.events_of("clip_norm") if e.value and e.before is not None]
        if len(events) >= 20:
            norms = sorted(e.before for e in events if e.before is not None)
            share = sum(e.before > e.value for e in events if e.before is not None and e.value is not None) / len(events)
            limit = events[0].value or 0.0
            starved = norms[len(norms) // 2] >= STARVED * limit and any(o.name == "SGD" for o in recording.optimizers)
            yield Measurement(value=share, location=recording.notes.get("clip_option") or events[0].span, cap=mild(recording) if starved else "info",
                              evidence={"share": share, "p90": norms[int(0.9 * len(norms))], "threshold_used": events[0].value, "starved": starved})

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if not m.evidence["starved"]:
            return ()                                           # info: raising the limit may let through what it holds back
        norm = float(f"{m.evidence['p90']:.2g}")
        return (Prescription("clip-threshold", f"Clip at {norm:g}, the 90th percentile of the norms seen", kind="clip", span=m.location,
                             arguments={"max_norm": norm, "old": m.evidence["threshold_used"]}),)

    def message(self, m: Measurement) -> str:
        return f"{m.value:.0%} of the steps are clipped at {m.evidence['threshold_used']:g}; the 90th percentile of the norms is {m.evidence['p90']:.3g}"
