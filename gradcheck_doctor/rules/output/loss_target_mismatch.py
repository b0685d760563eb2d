from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import mild


class LossTargetMismatch(Rule):
    """A squared or absolute error is used on class labels.

    What it measures: whether the targets of a regression loss are one-hot rows, or whole numbers of few distinct values with more outputs than one.

    Why it matters: the squared error of one-hot labels has a small gradient where the prediction is most wrong; class numbers have no order.

    When it is harmless: distillation, Brier scores, values of actions in reinforcement learning, a run that learns.

    Sources: Géron, ch. 10; Golik et al. 2013.
    """

    code = "GD605"
    name = "loss-target-mismatch"
    summary = "a squared error on class labels"
    threshold = Threshold(1.0, None, "evidence", "one-hot targets are exact")
    order = 120

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for loss in recording.losses:
            if loss.op in ("mse_loss", "l1_loss", "smooth_l1_loss") and loss.target_one_hot and len(loss.target_shape) == 2 and loss.target_shape[0] >= 4:
                yield Measurement(value=1.0, op=loss.op, location=loss.span, operations=(loss.operation,), cap=mild(recording),
                                  evidence={"classes": loss.target_shape[1]})

    def message(self, m: Measurement) -> str:
        return f"{m.op} on one-hot labels of {m.evidence['classes']} classes; cross_entropy on the class numbers is made for this"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("replace-loss", "Use cross_entropy", kind="loss", span=m.location, arguments={"to": "cross_entropy"}),)
