from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import LossRecord, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import loss_input
from gradcheck_doctor.rules.losses import PROBABILITIES, REGRESSION
from gradcheck_doctor.rules.progress import mild


class LossTargetMismatch(Rule):
    """A squared or absolute error is used on class labels.

    What it measures: whether the targets of a regression loss are one-hot rows; whether several outputs are all compared with the same class number;
    whether prediction (N, 1) and target (N,) are broadcast against each other to (N, N).

    Why it matters: the squared error of one-hot labels has a small gradient where the prediction is most wrong; class numbers have no order.

    When it is harmless: distillation, Brier scores, values of actions in reinforcement learning, a run that learns.

    Sources: Géron, ch. 10; Golik et al. 2013.
    """

    code = "GD605"
    name = "loss-target-mismatch"
    summary = "a squared error on class labels"
    threshold = Threshold(1.0, 2.0, "evidence", "exact: 1 one-hot rows, 2 outputs that are all compared with the same number")
    order = 120

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for loss in recording.losses:
            if loss.op in ("mse_loss", "l1_loss", "smooth_l1_loss") and loss.target_one_hot and len(loss.target_shape) == 2 and loss.target_shape[0] >= 4:
                yield Measurement(value=1.0, op=loss.op, location=loss.span, operations=(loss.operation,), cap=mild(recording),
                                  evidence={"classes": loss.target_shape[1]})
            elif loss.op in REGRESSION and (wrong := _wrong(loss)):
                yield Measurement(value=2.0, op=loss.op, location=loss.span, operations=(loss.operation,),
                                  evidence={"classes": loss.target_distinct, "wrong": wrong, "flat": len(loss.input_shape) == 1})

    def message(self, m: Measurement) -> str:
        if m.evidence.get("wrong"):
            return f"{m.op} {m.evidence['wrong']}"
        return f"{m.op} on one-hot labels of {m.evidence['classes']} classes; cross_entropy on the class numbers is made for this"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if "shape" in m.evidence.get("wrong", ""):
            return (Prescription("match-shapes", "Give prediction and target the same shape", kind="loss", span=m.location,
                                 arguments={"target": "squeeze" if m.evidence["flat"] else "unsqueeze"}),)
        loss = next((loss for loss in recording.losses if loss.operation in m.operations), None)
        last = loss_input(recording, loss) if loss is not None else None
        if last is None or last.op not in PROBABILITIES:
            return (Prescription("replace-loss", "Use cross_entropy", kind="loss", span=m.location, arguments={"to": "cross_entropy"}),)
        return (Prescription("score-loss", f"Use cross_entropy on the raw scores, without the {last.op}", kind="loss", modules=(last.module,), span=m.location,
                             arguments={"to": "cross_entropy", "activation": last.op}),)


def _wrong(loss: LossRecord) -> str:
    """What an exact look at the shapes shows."""
    shape, target = loss.input_shape, loss.target_shape
    if len(shape) == 2 and shape == target and shape[1] >= 3 and loss.target_repeated and loss.target_integer and (loss.target_distinct or 0) >= 3:
        return f"compares all {shape[1]} outputs with one class number; cross_entropy on the class numbers is made for this"
    small, large = sorted((shape, target), key=len)
    if len(small) == 1 and len(large) == 2 and large == (small[0], 1) and small[0] > 1:
        return f"broadcasts the shapes {shape} and {target} to {(small[0], small[0])}: every prediction is compared with every target"
    return ""
