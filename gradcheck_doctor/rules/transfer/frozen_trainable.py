from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import weight
from gradcheck_doctor.rules.progress import learned, progress

NEARLY_ALL = 0.5       # of the elements of all layers' weights


class FrozenTrainable(Rule):
    """A module was meant to be frozen but is not, or most of the network is frozen at its random start.

    What it measures: trainable parameters under a module that has a plain attribute `requires_grad` set to False: the attribute of a module does
    nothing, `requires_grad_(False)` freezes. And, in a run that did not learn and loaded nothing, the share of the weights that a line of the script
    froze as they were drawn, below layers that are trained.

    Why it matters: the pretrained part is trained along and wrecked by the new head's gradients. A random part that is frozen by mistake leaves the
    layers above it next to nothing to learn from.

    When it is harmless: the attribute never, it has no other meaning; frozen random features in a run that learns, teachers and target networks.

    Sources: PyTorch's documentation of Module.requires_grad_.
    """

    code = "GD902"
    name = "frozen-trainable"
    summary = "meant to be frozen, but trainable; or frozen at its random start"
    threshold = Threshold(1.0, 1.0, "trainable parameters under such a module", "exact")
    order = 170
    explains = ("GD901", "GD701", "GD305", "GD201", "GD302", "GD706", "GD208", "GD303", "GD301", "GD209", "GD707", "GD505")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for module in recording.modules:
            if module.config.get("requires_grad") is not False:
                continue
            inside = [p for p in recording.parameters if p.trainable and (p.module == module.path or p.module.startswith(module.path + "."))]
            yield Measurement(value=float(len(inside)), module=module.path, location=module.built, evidence={"parameters": len(inside)})
        place, gone = recording.notes.get("freezing"), progress(recording)
        if recording.kind == "run" and place is not None and gone is not None and gone >= 0.0 and not learned(recording):
            share, frozen = _frozen(recording)
            if share >= NEARLY_ALL:
                yield Measurement(value=0.0, module=frozen[0].module, modules=tuple(dict.fromkeys(o.module for o in frozen)), op=frozen[0].op, location=place,
                                  operations=tuple(o.index for o in frozen), floor="warning", evidence={"share": share, "loss_gone": gone})

    def message(self, m: Measurement) -> str:
        if "share" in m.evidence:
            return (f"{m.evidence['share']:.0%} of the layers' weights are frozen as they were drawn, below layers that are trained, nothing was loaded, "
                    f"and the loss fell by only {m.evidence['loss_gone']:.0%}")
        return f"{m.module}.requires_grad = False is only an attribute of the module: its {m.evidence['parameters']} parameters are still trained"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if "share" in m.evidence:
            return (Prescription("unfreeze", "Train the layers below, too", kind="optimizer", modules=m.modules, span=m.location),)
        return (Prescription("freeze", f"Freeze with {m.module.rpartition('.')[2]}.requires_grad_(False)", kind="optimizer", modules=(m.module,), span=m.location),)


def _frozen(recording: Recording) -> tuple[float, list[Operation]]:
    """(share of the elements, layers) of the weights that are frozen, never trained nor loaded, and below a layer that is trained."""
    if recording.notes.get("loaded") or any(p.trained for p in recording.parameters):
        return 0.0, []
    weights = {o.index: w for o in recording.operations if o.category == "layer" and (w := weight(recording, o)) is not None}
    below: set[int] = set()
    for operation in reversed(recording.operations):
        users = recording.consumers[operation.index]
        if any(u in below or u in weights and weights[u].trainable for u in users):
            below.add(operation.index)
    frozen = [recording.operations[i] for i, w in weights.items() if i in below and not w.trainable
              and not any(r.grad_norm is not None for r in recording.parameter_steps.get(w.name, ()))]
    total = sum({w.name: w.count for w in weights.values()}.values())
    return sum({weights[o.index].name: weights[o.index].count for o in frozen}.values()) / max(total, 1), frozen
