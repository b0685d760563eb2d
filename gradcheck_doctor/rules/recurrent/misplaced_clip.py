from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Event, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.progress import adversarial, mild

MEASURING = 1e4        # a threshold this large is there to measure the norm
SMALL = 0.05           # a clip threshold, divided by the loss scale, that lets (nearly) nothing through


class MisplacedClip(Rule):
    """The gradient is clipped where that does nothing, or on gradients that still carry the loss scale.

    What it measures: share of the observed steps with a backward on which the clip came before it (or, which is the same place, behind the step
    before) and none came between backward and step; or on which the clipped gradients were still multiplied by a GradScaler's factor of 16 or
    more, so that the threshold, divided by it, is below 0.05.

    Why it matters: gradients that are not there yet, or were used already, can't be clipped, so training runs unclipped although the code says
    otherwise. Clipping at 1 with a scale of 65536 lets a norm of 1.5e-5 through.

    When it is harmless: several optimizers that take turns (not judged); a threshold of 10 000 or more, which measures the norm; a threshold
    multiplied by the scale. A run that learns without its clip has a warning.

    Sources: PyTorch's documentation: clipping between backward and step, and behind scaler.unscale_(optimizer).
    """

    code = "GD404"
    name = "misplaced-clip"
    summary = "clipping outside of backward and step, or on scaled gradients"
    threshold = Threshold(0.5, 0.5, "share of steps with a misplaced clip", "half of the steps; what is misplaced is exact")
    order = 460
    explains = ("GD401", "GD305", "GD302", "GD706", "GD707", "GD701", "GD702", "GD403", "GD402")
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        if adversarial(recording):
            return
        backwards = {e.step for e in recording.events_of("backward")}
        placed = [e for e in recording.events if e.kind in ("clip_norm", "clip_value") and e.step in backwards]
        inside = {e.step for e in placed}
        early = [e for e in recording.events_of("early_clip") if e.step in backwards - inside and (e.value or 0.0) < MEASURING]
        scaled = [e for e in placed if "scale" in e.detail and e.detail["scale"] >= 16 and (e.value or 0.0) / e.detail["scale"] < SMALL]
        for events, where in ((early, _where(recording, early)), (scaled, "scaled")):
            if len(events) >= 2:
                yield self._judge(recording, events, where, len(backwards))

    def _judge(self, recording: Recording, events: Sequence[Event], where: str, steps: int) -> Measurement:
        return Measurement(value=len(events) / steps, location=events[0].span, cap=mild(recording, "warning"),
                           evidence={"misplaced": where, "steps": len(events), "observed": steps, "threshold_used": events[0].value,
                                     **({"scale": events[-1].detail["scale"]} if where == "scaled" else {})})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        if e["misplaced"] == "scaled":
            return (f"the gradient is clipped at {e['threshold_used']:g} while it still carries the loss scale of {e['scale']:g} "
                    f"({m.value:.0%} of the steps): a norm of {e['threshold_used'] / e['scale']:.1g} is let through; unscale_ comes first")
        place = {"before backward": "before backward, when there is no gradient yet", "after step": "behind the step that used the gradient",
                 "": "before backward or behind the step"}[e["misplaced"]]
        return f"the gradient is clipped {place} ({m.value:.0%} of the steps, limit {{limit}}): the clip does nothing"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        scaled = m.evidence["misplaced"] == "scaled"
        title = "Unscale the gradients before they are clipped" if scaled else "Move the clip between backward and step"
        return (Prescription("unscale" if scaled else "move-clip", title, kind="clip", span=m.location),)


def _where(recording: Recording, events: Sequence[Event]) -> str:
    """How the lines of the clip, the backward and the step follow each other, where all are in one file; "" where that can't be told."""
    backward = next((e.span for e in recording.events_of("backward") if e.span is not None), None)
    step = next((o.stepped for o in recording.optimizers if o.stepped is not None), None)
    clip = events[0].span if events else None
    if clip is None or backward is None or step is None or len({clip.file, backward.file, step.file}) > 1:
        return ""
    if clip.line <= backward.line:
        return "before backward"
    return "after step" if clip.line >= step.line else ""
