from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import is_gate, location


class SingleUnitSoftmax(Rule):
    """Softmax over an axis of size 1: the output is always 1 and every gradient exactly 0.

    What it measures: softmax operations whose axis has one element.

    Why it matters: nothing in front of it can learn.

    When it is harmless: a class count that happens to be 1 in a test; attention over a single position (info).

    Sources: exact; measured gradients are 0.
    """

    code = "GD602"
    name = "single-unit-softmax"
    summary = "softmax over a single unit is always 1"
    threshold = Threshold(1.0, 1.0, "softmax operations over one element", "exact")
    order = 90
    explains = ("GD301", "GD303", "GD608", "GD201", "GD208", "GD601", "GD603", "GD702", "GD707", "GD604", "GD605")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for operation in recording.operations:
            if operation.op not in ("softmax", "log_softmax") or not operation.shape:
                continue
            dim = operation.attributes.get("dim", operation.attributes.get("arg1", -1))
            if isinstance(dim, int) and -len(operation.shape) <= dim < len(operation.shape) and operation.shape[dim] == 1:
                yield Measurement(value=1.0, module=operation.module, op=operation.op, location=location(recording, operation),
                                  operations=(operation.index,), cap="info" if is_gate(recording, operation) else None,
                                  evidence={"shape": list(operation.shape), "dim": dim})

    def message(self, m: Measurement) -> str:
        return f"{m.op} over axis {m.evidence['dim']} of size 1 gives 1 for every input and a gradient of exactly 0"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("remove-output-activation", "Give the raw score and use binary_cross_entropy_with_logits", kind="loss", modules=(m.module,),
                             span=m.location, arguments={"op": m.op, "loss": "binary_cross_entropy_with_logits"}),)
