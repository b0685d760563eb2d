from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import back, location, weight
from gradcheck_doctor.theory.initialisation import he_std


class LeakySlopeMismatch(Rule):
    """He init was drawn for another negative slope than the LeakyReLU behind it has.

    What it measures: He's standard deviation for the slope at hand over the one of the weights, for slopes of 0.1 and more.

    Why it matters: little; a slope of 0.2 asks for 2 % less. It adds up only over very many layers.

    When it is harmless: nearly always, hence never above info.

    Sources: He et al. 2015 (arXiv:1502.01852).
    """

    code = "GD210"
    name = "leaky-slope-mismatch"
    summary = "He init drawn for another negative slope"
    threshold = Threshold(None, None, "relative difference of the standard deviation", "He et al. 2015", info=0.1)
    order = 350

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for operation in recording.operations:
            slope = operation.attributes.get("negative_slope")
            layer = back(recording, operation) if operation.op == "leaky_relu" else None
            record = weight(recording, layer) if layer is not None and layer.category == "layer" else None
            if record is None or not isinstance(slope, float) or slope < 0.1 or not record.fan_in or not record.scheme.startswith("he "):
                continue
            wanted = he_std(record.fan_in, slope)
            yield Measurement(value=abs(record.std / wanted - 1.0), module=operation.module, op=operation.op, location=location(recording, operation),
                              operations=(operation.index,), evidence={"std": record.std, "wanted": wanted, "slope": slope})

    def message(self, m: Measurement) -> str:
        return f"weights have std {m.evidence['std']:.3g}, He for slope {m.evidence['slope']:g} asks for {m.evidence['wanted']:.3g}"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        layer = back(recording, recording.operations[m.operations[0]])
        modules = (layer.module,) if layer is not None else ()
        return (Prescription("initialise", f"He normal with a={m.evidence['slope']:g}", safety="safe", kind="init", modules=modules,
                             arguments={"scheme": "he normal", "slope": m.evidence["slope"]}),)
