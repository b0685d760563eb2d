from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import ParameterRecord, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.progress import adversarial, mild

BACKWARDS = 30         # without a step, from which on no accumulation of gradients explains it


class UnoptimizedParameter(Rule):
    """A trainable parameter takes part in training but no optimizer steps it.

    What it measures: share of the trainable elements that ran and got a gradient but are in no optimizer's groups; layers in a plain Python list
    count, since `parameters()` does not see them. Also optimizers that hold the weights and never take a step, and those that hold an earlier model's.

    Why it matters: those layers keep their random start for ever, silently.

    When it is harmless: parameters updated by hand (a loop that changes its weights itself, without an optimizer, is not judged), an optimizer that
    steps only later. A body that was loaded or trained before, below a new head that learns, is information: gradients are computed for nothing.

    Sources: exact.
    """

    code = "GD704"
    name = "unoptimized-parameter"
    summary = "a parameter with a gradient is in no optimizer"
    threshold = Threshold(1e-9, 0.01, "share of the trainable elements", "exact")
    order = 150
    explains = ("GD301", "GD702", "GD707", "GD303", "GD608")
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        never = next(iter(recording.notes.get("idle", ())), None)
        if never is not None and not recording.total_steps and recording.notes["backwards"] >= BACKWARDS and _in_training(recording):
            yield self._never(recording, never, never["parameters"])
        if not recording.optimizers or recording.total_steps < 3 or recording.optimizers[0].own or _input_trained(recording):
            return
        missing = [p for p in recording.parameters if p.trainable and p.in_optimizer is False and p.tied_to is None
                   and any(r.grad_norm for r in recording.parameter_steps.get(p.name, ()))]
        if not missing or all("<tensor" in p.name for p in missing) and not _reached(recording):
            return                                              # the loss begins at a tensor made anew: no-gradient says so
        names = {p.name for p in missing}
        if never is not None and names <= set(never["parameters"]):
            yield self._never(recording, never, sorted(names))
            return
        orphans = [o for o in recording.notes.get("orphans", ()) if any(p.module.startswith(o["module"]) for p in missing)]
        total = sum(p.count for p in recording.parameters if p.trainable)
        module = recording.module.get(missing[0].module)
        strange = not orphans and len(recording.optimizers) == 1 and {n for g in recording.optimizers[0].groups for n in g.parameters} == {"?"}
        built = orphans[0]["built"] if orphans else recording.optimizers[0].built if strange else module.built if module is not None else None
        yield Measurement(value=sum(p.count for p in missing) / max(total, 1), module=missing[0].module,
                          modules=tuple(dict.fromkeys(p.module for p in missing)), location=built,
                          cap=mild(recording) if not orphans and _trained(missing) else None,
                          evidence={"parameters": [p.name for p in missing][:8], "count": len(missing), "unregistered": len(orphans), "strange": strange,
                                    **({"taking_turns": True} if adversarial(recording) else {})})

    def _never(self, recording: Recording, row: Mapping[str, Any], names: Sequence[str]) -> Measurement:
        modules = tuple(dict.fromkeys(p.module for n in names if (p := recording.parameter.get(n)) is not None))
        return Measurement(value=1.0, location=row["uncalled"] or row["built"], modules=modules,
                           evidence={"parameters": list(names)[:8], "count": len(names), "optimizer": row["optimizer"],
                                     "backwards": recording.notes["backwards"], "uncalled": row["uncalled"] is not None})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        if "optimizer" in e:
            why = "; step stands here without its brackets" if e["uncalled"] else ""
            return f"{e['optimizer']} holds {e['count']} parameters that get gradients and never takes a step, in {e['backwards']} backward passes{why}"
        if e["strange"]:
            return (f"{e['count']} parameters get gradients but are in no optimizer ({', '.join(e['parameters'][:2])}): this one holds those of a model that "
                    "never ran, such as one that was replaced after it; make the optimizer behind the model that is trained")
        why = f"; {e['unregistered']} of their modules are in a plain Python container that nn.Module does not see" if e["unregistered"] else ""
        return f"{e['count']} parameters get gradients but are in no optimizer ({', '.join(e['parameters'][:2])}){why}"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if "optimizer" in m.evidence:
            return (Prescription("call-step", "Call the optimizer's step() behind backward", kind="optimizer", span=m.location if m.evidence["uncalled"] else None),)
        if m.evidence["unregistered"]:
            return (Prescription("register-modules", "Keep the layers in an nn.ModuleList or nn.ModuleDict", kind="optimizer", span=m.location, modules=m.modules),)
        record = recording.optimizers[0]
        if m.evidence["strange"]:
            return (Prescription("remake-optimizer", "Make the optimizer behind the model", kind="optimizer", span=record.built),)
        return (Prescription("add-parameters", "Give the optimizer these parameters", kind="optimizer", span=record.built, modules=m.modules),)


def _trained(missing: Sequence[ParameterRecord]) -> bool:
    """All weights among them were loaded or trained before: features that are used as they are."""
    weights = [p for p in missing if len(p.shape) >= 2]
    return bool(weights) and all(p.trained for p in weights)


def _reached(recording: Recording) -> bool:
    """Some parameter of an optimizer had a gradient."""
    return any(row.grad_norm for p in recording.parameters if p.in_optimizer for row in recording.parameter_steps.get(p.name, ()))


def _input_trained(recording: Recording) -> bool:
    """An image is optimised through a model that stays as it is: style transfer, feature visualisation."""
    return any(o.category == "input" and o.requires_grad for o in recording.operations) and not any(p.in_optimizer for p in recording.parameters)


def _in_training(recording: Recording) -> bool:
    """The models are in training mode: gradients of a finished one may be wanted for their own sake (saliency, Fisher information)."""
    return any(m.training for m in recording.modules if not m.path) or not recording.modules
