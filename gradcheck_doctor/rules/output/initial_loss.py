from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import LossRecord, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.progress import mild


class InitialLoss(Rule):
    """The first loss is far above what an untrained network should give: it starts from a confident mistake.

    What it measures: first loss over log C for C classes; for a squared error over the variance of the targets, where the mean of the targets is
    far from 0.

    Why it matters: the first part of the budget is spent on shrinking the scores, or on moving the output to the mean of the targets.

    When it is harmless: label smoothing, class weights, several losses added; a run that learns.

    Sources: TheDeepChecker (Ben Braiek and Khomh 2022); Karpathy, "A recipe for training neural networks".
    """

    code = "GD604"
    name = "initial-loss"
    summary = "the first loss is far above that of an untrained network"
    threshold = Threshold(10.0, 100.0, "first loss / loss of a constant guess", "twice log C for classes is info; 10 times is a warning", info=2.0)
    order = 345
    explains = ("GD302", "GD201", "GD305", "GD707", "GD706")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for loss in recording.losses:
            value, guess = _ratio(loss)
            if value is None:
                continue
            trained = any(p.trained for p in recording.parameters)
            synthetic = recording.kind == "audit" and any(i.synthetic for i in recording.inputs)
            last = [v for _, v in recording.curve[-20:] if math.isfinite(v)]
            reached = bool(last) and loss.op == "mse_loss" and recording.kind == "run" and median(last) < 0.5 * guess
            cap = "info" if trained or synthetic or reached else None if loss.op == "mse_loss" else mild(recording)
            yield Measurement(value=value, op=loss.op, location=loss.span, operations=(loss.operation,), cap=cap,
                              evidence={"initial_loss": loss.value, "constant_guess": guess, "target_mean": loss.target_mean, "target_std": loss.target_std,
                                        "loss": loss.op})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        return f"the first {e['loss']} is {e['initial_loss']:.3g}, {m.value:.3g} times that of a constant guess ({e['constant_guess']:.3g})"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if m.evidence["loss"] == "mse_loss":
            return (Prescription("target-bias", "Start the output bias at the mean of the targets", kind="init", span=m.location,
                                 arguments={"value": m.evidence["target_mean"]}),)
        return ()


def _ratio(loss: LossRecord) -> tuple[float | None, float]:
    if loss.value is None or not math.isfinite(loss.value) or loss.reduction != "mean":
        return None, 0.0
    if loss.op == "cross_entropy" and loss.classes and loss.classes > 1 and not loss.weighted:
        return loss.value / math.log(loss.classes), math.log(loss.classes)
    if loss.op == "mse_loss" and loss.target_std and loss.target_mean is not None and abs(loss.target_mean) > 3 * loss.target_std:
        return loss.value / loss.target_std**2, loss.target_std**2
    return None, 0.0
