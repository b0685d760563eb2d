from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import TRANSPARENT, ahead, back, location, weight
from gradcheck_doctor.rules.initialisation.cures import drawn_by
from gradcheck_doctor.rules.progress import mild

STEEP = frozenset({"exp", "square", "pow"})


class UnboundedActivation(Rule):
    """exp or a power serves as a hidden activation: a few layers of it overflow.

    What it measures: exp, powers and squares (x * x, too) between two weight layers, per model.

    Why it matters: eight layers of exp under He init end in a non-finite loss in 20 of 20 draws (measured).

    When it is harmless: log-space models, normalising flows, numerators of a softmax: there the value does not feed weights directly.

    Sources: measured in this project.
    """

    code = "GD207"
    name = "unbounded-activation"
    summary = "exp or a power as hidden activation"
    threshold = Threshold(2.0, 3.0, "such layers in the model", "3: non-finite loss in the trials")
    order = 375
    explains = ("GD801", "GD802", "GD803", "GD209", "GD302", "GD706")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        steep = [o for o in recording.operations if o.op in STEEP and _between_layers(recording, o)]
        if steep:
            yield Measurement(value=float(len(steep)), module=steep[0].module, modules=tuple(dict.fromkeys(o.module for o in steep)), op=steep[0].op,
                              location=location(recording, steep[0]), operations=tuple(o.index for o in steep), cap=mild(recording),
                              evidence={"layers": len(steep), "op": steep[0].op})

    def message(self, m: Measurement) -> str:
        return f"{m.evidence['layers']} hidden layers use {m.evidence['op']} as activation (limit {{limit}}); its values multiply from layer to layer"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        layers = [layer for i in m.operations if (layer := back(recording, recording.operations[i])) is not None]
        he = all(drawn_by(w, "he normal") for layer in layers if (w := weight(recording, layer)) is not None)
        return (Prescription("replace-activation", "Use ReLU" if he else "Use ReLU with He init", kind="activation", modules=m.modules, span=m.location,
                             arguments={"to": "relu"} if he else {"to": "relu", "scheme": "he normal"}),)


def _between_layers(recording: Recording, operation: Operation) -> bool:
    before, after = back(recording, operation), ahead(recording, operation, TRANSPARENT)
    return all(o is not None and o.category == "layer" and weight(recording, o) is not None for o in (before, after))
