from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured


class SummedLoss(Rule):
    """The loss is summed over the batch, so the gradient grows with the batch size.

    What it measures: the `reduction` argument of the loss calls; a sum that is divided right after (by the tokens or the samples) is a mean.

    Why it matters: the learning rate then fits one batch size only, and clip thresholds and the last, smaller batch behave differently.

    When it is harmless: conventions of variational autoencoders and reinforcement learning; info only.

    Sources: TheDeepChecker (Ben Braiek and Khomh 2022).
    """

    code = "GD606"
    name = "summed-loss"
    summary = "the loss is summed over the batch"
    threshold = Threshold(None, None, "loss calls with reduction='sum'", "exact", info=1.0)
    order = 550

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for loss in recording.losses:
            if loss.reduction == "sum" and not _divided(recording, loss.operation):
                yield Measurement(value=1.0, op=loss.op, location=loss.span, operations=(loss.operation,), evidence={"loss": loss.op})

    def message(self, m: Measurement) -> str:
        return f"{m.op} is summed over the batch; the gradient grows with the batch size"


def _divided(recording: Recording, operation: int) -> bool:
    return any(recording.operations[user].op in ("div", "true_divide") for user in recording.consumers.get(operation, ()))
