from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import LossRecord, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.optimizer.learning_rate import strides_of


class SummedLoss(Rule):
    """The loss is summed over the batch, so the gradient grows with the batch size.

    What it measures: rms(change of a weight) / rms(weight) in a run whose loss call has reduction="sum" and whose loss does not fall; without such
    steps the sum is stated as info. A sum that is divided right after (by the tokens or the samples) is a mean.

    Why it matters: the learning rate then fits one batch size only; one that is usual for a mean is as many times too high as the batch is large.

    When it is harmless: conventions of variational autoencoders and reinforcement learning, with a rate to match; a run that learns.

    Sources: TheDeepChecker (Ben Braiek and Khomh 2022).
    """

    code = "GD606"
    name = "summed-loss"
    summary = "the loss is summed over the batch"
    threshold = Threshold(3e-2, 1e-1, "update / weight, rms, under a summed loss", "as GD701; the sum alone is info", info=0.0)
    order = 472
    explains = ("GD701", "GD201", "GD302", "GD305", "GD706", "GD707", "GD303", "GD301", "GD208", "GD209", "GD608", "GD801", "GD802", "GD803", "GD202",
                "GD401", "GD304")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        strides = strides_of(recording)
        for loss in recording.losses:
            if loss.reduction == "sum" and recording.operations[loss.operation].category == "loss" and not _divided(recording, loss):
                size = strides.size if strides is not None and recording.kind == "run" else 0.0
                yield Measurement(value=size, op=loss.op, location=loss.span, operations=(loss.operation,),
                                  cap=None if strides is not None and strides.harmful else "info",
                                  evidence={"loss": loss.op, "update_ratio": size, "batch": loss.input_shape[0] if loss.input_shape else 0})

    def message(self, m: Measurement) -> str:
        text = f"{m.op} is summed over the batch of {m.evidence['batch']}; the gradient grows with the batch size"
        return text + (f", and the steps change the weights by {m.value:.2g} of their size (limit {{limit}})" if m.value >= 3e-2 else "")

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("mean-reduction", "Average the loss over the batch", kind="loss", span=m.location),)


def _divided(recording: Recording, loss: LossRecord) -> bool:
    """Something like the number of samples divides the loss; a small number is the share of a step that accumulates gradients (1 in Lightning)."""
    users = [recording.operations[user] for user in recording.consumers.get(loss.operation, ())]
    by = [user.attributes.get("arg1", user.attributes.get("other")) for user in users if user.op in ("div", "true_divide")]
    batch = loss.input_shape[0] if loss.input_shape else 1
    return any(not isinstance(number, (int, float)) or number >= max(2, batch // 2) for number in by)
