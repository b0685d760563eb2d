from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.optimizer.readings import lowered
from gradcheck_doctor.rules.progress import learned, phase_start


class UnwarmedHead(Rule):
    """A new head and a pretrained body are trained together at the full learning rate from the first step.

    What it measures: largest update of the pretrained weights (change / weight) in the first steps, where part of the model was trained or loaded,
    part is new, and one learning rate serves both.

    Why it matters: the random head's gradients destroy the pretrained features before the head has learned anything.

    When it is harmless: a small learning rate, a warm-up, groups with their own rates; a run that learns.

    Sources: Géron, ch. 11: freeze the reused layers for the first epochs, or give them a smaller rate.
    """

    code = "GD901"
    name = "unwarmed-head"
    summary = "pretrained weights trained at the rate of a new head"
    threshold = Threshold(1e-2, 1e-1, "largest update / weight of the pretrained part", "a hundredth of the weight in one step")
    order = 220
    explains = ("GD701", "GD201", "GD302", "GD305", "GD303", "GD301", "GD208", "GD706", "GD707", "GD209")
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        weights = [p for p in recording.parameters if len(p.shape) >= 2 and p.trainable]
        begin, seen = phase_start(recording), recording.notes.get("first_seen", {})
        new = [p for p in weights if not p.trained and seen.get(p.name, 0) >= begin]
        old = [p for p in weights if p not in new]
        rates = {g.lr for o in recording.optimizers[-1:] for g in o.groups}
        if not old or not new or len(rates) != 1:
            return
        early = [r.update_ratio for p in old for r in [r for r in recording.parameter_steps.get(p.name, ()) if r.step >= begin][:10]
                 if r.update_ratio is not None]
        if early:
            record = recording.optimizers[-1]
            yield Measurement(value=max(early), module=old[0].module, modules=tuple(dict.fromkeys(p.module for p in old)), location=record.built,
                              cap="info" if learned(recording) else None, evidence={"update_ratio": max(early), "lr": next(iter(rates)), "new": [p.module for p in new]})

    def message(self, m: Measurement) -> str:
        return (f"pretrained weights change by up to {m.value:.2g} of their size in the first steps (limit {{limit}}): the new head trains at the same "
                f"rate {m.evidence['lr']:g}")

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        freeze = Prescription("freeze-backbone", "Freeze the pretrained part while the head warms up", kind="optimizer", modules=m.modules, span=m.location)
        return (freeze, *lowered(m.evidence["lr"], recording.optimizers[-1], 10))
