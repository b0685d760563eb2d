from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import OptimizerRecord, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.optimizer.readings import update_ratios
from gradcheck_doctor.rules.progress import falling, mild, progress, steady

LARGE, FIRST = 1e-2, 290   # an epsilon of that size was set by hand: it comes before what makes gradients somewhat small


DECIDED = 10.0                 # times the gradient from which on epsilon alone decides the step
MOST, SLOW, LEFT = 0.75, 1e-3, 0.9     # share of the weights; update ratio that a run should have; share of the loss that is not all gone yet


class AdamEpsilon(Rule):
    """Adam's epsilon is larger than the gradients, so it, not they, decides the size of the step.

    What it measures: epsilon over the rms of a gradient entry, median over the weights and the observed steps.

    Why it matters: the step is lr g / (sqrt(v) + eps): with eps a hundred times sqrt(v) it is a hundred times too small.

    When it is harmless: eps = 1 with large gradients (an Inception recipe), 1e-4 in half precision; a run that learns. It is a warning all the same where
    an epsilon of 0.01 or more is ten times the gradient for three quarters of the weights, the steps are below 1e-3 of them, and the loss, more than a tenth
    of which is left, is still falling at the end.

    Sources: Kingma and Ba 2015 (arXiv:1412.6980).
    """

    code = "GD708"
    name = "adam-epsilon"
    summary = "Adam's epsilon is larger than the gradients"
    threshold = Threshold(10.0, 1e4, "epsilon / rms of a gradient entry", "ten times: the step is a tenth of what the learning rate says")
    order = 480
    explains = ("GD702", "GD707", "GD703")
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        entries = [row.grad_norm / math.sqrt(p.count) for p in recording.parameters if p.trainable and len(p.shape) >= 2
                   for row in recording.parameter_steps.get(p.name, ()) if row.grad_norm is not None and row.grad_norm > 0]
        for record in recording.optimizers:
            eps = max((g.eps for g in record.groups if g.eps is not None), default=None)
            if eps is not None and eps > 1e-6 and "Adam" in record.name and entries:
                cap = mild(recording, "warning" if eps >= LARGE and _held_back(recording, record, eps) else "info")
                yield Measurement(value=eps / median(entries), location=record.built, cap=cap, order=FIRST if eps >= LARGE else None,
                                  evidence={"eps": eps, "gradient_rms": median(entries), "optimizer": record.name})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        return f"{e['optimizer']} has eps={e['eps']:g} where a gradient entry is about {e['gradient_rms']:.1e}: epsilon decides the step, {m.value:.3g} times too small"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("adam-epsilon", "Use Adam's default eps=1e-8", kind="optimizer", span=m.location, arguments={"eps": 1e-8, "old": m.evidence["eps"]}),)


def _held_back(recording: Recording, record: OptimizerRecord, eps: float) -> bool:
    """Epsilon decides the steps of most weights, these are small, and the loss is still on its way down when the run ends."""
    held = {name for group in record.groups for name in group.parameters}
    decided = total = 0
    for p in recording.parameters:
        norms = [row.grad_norm for row in recording.parameter_steps.get(p.name, ()) if row.grad_norm] if p.trainable and len(p.shape) >= 2 and p.name in held else []
        if norms:
            total += p.count
            decided += p.count if eps >= DECIDED * median(norms) / math.sqrt(p.count) else 0
    ratios = [r for r in update_ratios(recording) if math.isfinite(r)]
    gone = progress(recording)
    return (decided >= MOST * total > 0 and bool(ratios) and median(ratios) < SLOW and gone is not None and gone < LEFT
            and (steady(recording) or falling(recording)))
