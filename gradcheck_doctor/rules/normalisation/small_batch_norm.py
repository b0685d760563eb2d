from __future__ import annotations

import math
from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import location


class SmallBatchNorm(Rule):
    """Batch normalisation gets its statistics from too few values, so training and evaluation see different networks.

    What it measures: values each channel is normalised over (batch x positions) in training mode, the least over the model.

    Why it matters: over two values the output is just -1 and +1; the running statistics used in evaluation fit none of the batches.
    Accumulating gradients does not help: each micro-batch is normalised by itself.

    When it is harmless: in evaluation mode; with many positions per channel; a made-up batch of an audit says nothing about the real one.

    Sources: Wu and He 2018 (GroupNorm, arXiv:1803.08494).
    """

    code = "GD503"
    name = "small-batch-norm"
    summary = "batch normalisation over too few values"
    threshold = Threshold(7.0, 1.0, "values per channel", "fewer than 8 values a channel", "below")
    order = 360
    explains = ("GD302", "GD305", "GD707", "GD201", "GD701", "GD506")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        values = {o.index: _values(o) for o in recording.operations if o.op == "batch_norm" and o.attributes.get("training", True) and o.input_shapes}
        if not values:
            return
        index = min(values, key=lambda i: values[i])
        operation = recording.operations[index]
        synthetic = any(i.synthetic for i in recording.inputs)
        modules = tuple(dict.fromkeys(recording.operations[i].module for i, v in values.items() if v < 8))
        yield Measurement(value=float(values[index]), module=operation.module, modules=modules, op="batch_norm", location=location(recording, operation),
                          operations=(index,), cap="info" if synthetic else None, evidence={"values": values[index], "batch": operation.input_shapes[0][0]})

    def message(self, m: Measurement) -> str:
        return f"each channel is normalised over {m.evidence['values']} values (batch of {m.evidence['batch']}); at least 8 are needed"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("replace-norm", "GroupNorm does not depend on the batch", kind="norm", modules=m.modules, arguments={"to": "group"}),)


def _values(operation: Operation) -> int:
    shape = operation.input_shapes[0]
    return shape[0] * math.prod(shape[2:])
