from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.attention import of_scores, of_slots
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import ahead, location, weight


class HiddenSoftmax(Rule):
    """Softmax serves as a hidden activation: its outputs sum to 1, so the next layer sees tiny, dependent values.

    What it measures: softmax operations whose output goes straight into a layer with weights of its own.

    Why it matters: with n units the values are about 1/n and their slopes smaller still.

    When it is harmless: attention weights, expert routing, pointers: there softmax multiplies other values instead of feeding weights. The weights of talking
    heads go through a layer that mixes heads, not keys: softmax of products of two values is not counted. Nor is the look-up in a memory of the model's
    own, softmax(q K^T) V, where K and V are bare parameters and no bias stands between.

    Sources: TheDeepChecker (Ben Braiek and Khomh 2022).
    """

    code = "GD206"
    name = "hidden-softmax"
    summary = "softmax used as a hidden activation"
    threshold = Threshold(1.0, 1.0, "softmax operations that feed a layer", "one is a fault of the architecture")
    order = 370
    explains = ("GD301", "GD208", "GD307", "GD702", "GD707", "GD608")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for operation in recording.operations:
            if operation.op not in ("softmax", "log_softmax") or operation.category != "activation":
                continue
            following = ahead(recording, operation, ("shape", "dropout"))
            feeds = following is not None and following.category == "layer" and weight(recording, following) is not None
            if feeds and not of_scores(recording, operation) and not of_slots(recording, operation):
                yield Measurement(value=1.0, module=operation.module, op=operation.op, location=location(recording, operation),
                                  operations=(operation.index,), evidence={"width": operation.shape[-1] if operation.shape else 0})

    def message(self, m: Measurement) -> str:
        return f"{m.op} over {m.evidence['width']} units feeds another layer; hidden layers need an activation per unit, such as ReLU"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("replace-activation", "Use ReLU in the hidden layer", kind="activation", modules=(m.module,), span=m.location,
                             arguments={"to": "relu"}),)
