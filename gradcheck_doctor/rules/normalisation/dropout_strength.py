from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import location


class DropoutStrength(Rule):
    """Dropout removes more than half of a layer.

    What it measures: the probability p of each dropout in training mode.

    Why it matters: strong dropout slows training and can underfit.

    When it is harmless: 0.5 in the wide dense layers of AlexNet and VGG is normal; info only.

    Sources: Srivastava et al. 2014; UMLAUT (Schoop et al. 2021).
    """

    code = "GD508"
    name = "dropout-strength"
    summary = "dropout of more than half"
    threshold = Threshold(None, None, "p", "UMLAUT", info=0.51)
    order = 530

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for operation in recording.operations:
            p = operation.attributes.get("p", operation.attributes.get("dropout_p", 0.0))
            if operation.category == "dropout" and operation.attributes.get("training", True) and isinstance(p, float):
                yield Measurement(value=p, module=operation.module, op=operation.op, location=location(recording, operation),
                                  operations=(operation.index,), evidence={"p": p})

    def message(self, m: Measurement) -> str:
        return f"dropout with p={m.value:g} removes more than half of the layer"
