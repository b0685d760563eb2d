"""Steps that are too large or too small for the weights they change."""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import bad_batch, first_nonfinite, learned, phase_start, progress
from gradcheck_doctor.rules.optimizer.readings import dead_share, largest_lr, update_ratios

HEALTHY = 1e-3         # update ratio aimed at
#: Rates that people begin with; torch's defaults for the adaptive ones.
USUAL = {"Adam": 1e-3, "AdamW": 1e-3, "NAdam": 1e-3, "RAdam": 1e-3, "Adamax": 1e-3, "RMSprop": 1e-3, "SGD": 1e-2}
EARLY = 12             # steps that count as the start


@dataclass(frozen=True)
class Strides:
    """Update ratios of a run: the size judged, the median and largest of the first steps, the share of the loss that is gone."""

    size: float
    early: float
    first: float
    gone: float | None
    harmful: bool          # large steps and a loss that does not fall


def strides_of(recording: Recording) -> Strides | None:
    """How far the optimizer's steps go; None with too few of them."""
    begin, broken, blow = phase_start(recording), first_nonfinite(recording), bad_batch(recording)
    broken = blow if blow is not None else broken            # what a bad batch did to the weights is not the rate's doing
    ratios = update_ratios(recording, first=begin, last=broken)
    if len(ratios) < 5 or recording.total_steps < 10:
        first = max((r for r in ratios if math.isfinite(r)), default=0.0)
        blown = blow is None and broken is not None and recording.total_steps >= 10 and first >= 0.1
        return Strides(first, first, first, None, True) if blown else None      # a few steps were enough to leave the finite numbers
    finite = [r for r in ratios if math.isfinite(r)]
    early = [r for r in update_ratios(recording, first=begin, last=begin + EARLY) if math.isfinite(r)]
    first = max(early, default=0.0)
    size = max(median(finite), first / 3) if finite else math.inf
    gone = progress(recording, broken)
    still = 0.1 if size < 0.1 else 0.3                       # a loss that falls contradicts a rate that is only somewhat high
    harmful = not learned(recording) and (gone is None or gone < still or dead_share(recording) > 0.5)
    return Strides(size, median(early) if early else 0.0, first, gone, harmful)


class LearningRateTooHigh(Rule):
    """The optimizer's steps are so large beside the weights that they destroy what was learned, and the loss does not fall.

    What it measures: rms(change of a weight) / rms(weight), median over the weight matrices; the larger of the median over the run and the
    largest of the first twelve steps divided by 3 (a first blow is enough to kill ReLU units). Only in a run whose loss does not fall.

    Why it matters: around 1e-3 is usual; at 0.1 the weights are someone else's after ten steps.

    When it is harmless: Adam's first step is 2 lr sqrt(fan_in) at default init; biases, zero-initialised weights and norms are left out;
    a run that learns.

    Sources: TheDeepChecker (Ben Braiek and Khomh 2022); CS231n's rule of thumb of 1e-3.
    """

    code = "GD701"
    name = "learning-rate-too-high"
    summary = "steps too large beside the weights, and the loss does not fall"
    threshold = Threshold(3e-2, 1e-1, "update / weight, rms", "TheDeepChecker: 1e-1; healthy runs of this project stay below 3e-2")
    order = 490
    explains = ("GD201", "GD706", "GD707", "GD305", "GD301", "GD302", "GD303", "GD208", "GD209", "GD202", "GD608", "GD307", "GD803", "GD802", "GD801",
                "GD304")
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        chosen, strides = largest_lr(recording), strides_of(recording)
        if chosen is None or strides is None:
            return
        lr, record = chosen
        yield Measurement(value=strides.size, location=record.built or record.stepped, cap=None if strides.harmful else "info",
                          order=474 if strides.early >= 3e-2 else None,
                          evidence={"update_ratio": strides.size, "first_updates": strides.first, "lr": lr, "loss_fell": strides.gone, "optimizer": record.name,
                                    "harmful": strides.harmful})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        fell = ", and the loss does not fall" if e["harmful"] else ""
        return f"{e['optimizer']} with lr {e['lr']:g} changes the weights by {m.value:.2g} of their size a step (limit {{limit}}){fell}"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        lr = m.evidence["lr"]
        factor = 10 ** round(math.log10(max(10.0, min(m.value / HEALTHY, 1e4))))
        return tuple(Prescription("learning-rate", f"Lower the learning rate from {lr:g} to {lr / f:g}", kind="optimizer", span=m.location,
                                  arguments={"lr": lr / f, "old": lr}) for f in dict.fromkeys((factor, 10, 100)))


class LearningRateTooLow(Rule):
    """The optimizer's steps are so small that the weights practically stay where they were.

    What it measures: rms(change) / rms(weight), median over the weight matrices and the run, in a run of at least 20 steps whose loss fell by less than 10 %.

    Why it matters: at 1e-6 a step, a thousand steps change a weight by a thousandth.

    When it is harmless: the end of a schedule, fine-tuning, very long runs.

    Sources: TheDeepChecker (Ben Braiek and Khomh 2022).
    """

    code = "GD702"
    name = "learning-rate-too-low"
    summary = "steps so small that the weights stay where they were"
    threshold = Threshold(1e-4, None, "update / weight, rms", "TheDeepChecker: 1e-4", "below")
    order = 495
    weak = True
    explains = ("GD707",)
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        chosen = largest_lr(recording)
        ratios = [r for r in update_ratios(recording) if math.isfinite(r)]
        gone = progress(recording)
        if chosen is None or len(ratios) < 5 or recording.total_steps < 20 or gone is None:
            return
        lr, record = chosen
        value = median(ratios)
        if value > 0:
            yield Measurement(value=value, location=record.built or record.stepped, cap="info" if gone > 0.1 else None,
                              evidence={"update_ratio": value, "lr": lr, "loss_fell": gone, "optimizer": record.name})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        return f"{e['optimizer']} with lr {e['lr']:g} changes the weights by {m.value:.1e} of their size a step (limit {{limit}}); the loss fell by {e['loss_fell']:.0%}"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        lr = m.evidence["lr"]
        derived = lr * 10 ** round(math.log10(max(10.0, min(HEALTHY / m.value, 1e4))))
        usual = USUAL.get(m.evidence["optimizer"], 0.0)
        cures = {derived: f"at which a step moves the weights by about {HEALTHY:g} of their size"}
        if usual > lr:
            cures.setdefault(usual, f"the usual one of {m.evidence['optimizer']}")
        return tuple(Prescription("learning-rate", f"Raise the learning rate from {lr:g} to {rate:g}, {why}", kind="optimizer", span=m.location,
                                  arguments={"lr": rate, "old": lr}) for rate, why in cures.items())
