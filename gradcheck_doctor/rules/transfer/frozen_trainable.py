from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured


class FrozenTrainable(Rule):
    """A module was meant to be frozen but is not, or nearly everything is frozen by mistake.

    What it measures: trainable parameters under a module that has a plain attribute `requires_grad` set to False: the attribute of a module does
    nothing, `requires_grad_(False)` freezes.

    Why it matters: the pretrained part is trained along and wrecked by the new head's gradients.

    When it is harmless: never; the attribute has no other meaning.

    Sources: PyTorch's documentation of Module.requires_grad_.
    """

    code = "GD902"
    name = "frozen-trainable"
    summary = "meant to be frozen, but trainable"
    threshold = Threshold(1.0, 1.0, "trainable parameters under such a module", "exact")
    order = 170
    explains = ("GD901", "GD701", "GD305", "GD201", "GD302", "GD706", "GD208", "GD303", "GD301", "GD209", "GD707")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for module in recording.modules:
            if module.config.get("requires_grad") is not False:
                continue
            inside = [p for p in recording.parameters if p.trainable and (p.module == module.path or p.module.startswith(module.path + "."))]
            yield Measurement(value=float(len(inside)), module=module.path, location=module.built, evidence={"parameters": len(inside)})

    def message(self, m: Measurement) -> str:
        return f"{m.module}.requires_grad = False is only an attribute of the module: its {m.evidence['parameters']} parameters are still trained"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("freeze", f"Freeze with {m.module.rpartition('.')[2]}.requires_grad_(False)", kind="optimizer", modules=(m.module,), span=m.location),)
