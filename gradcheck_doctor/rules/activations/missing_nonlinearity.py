from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, ParameterRecord, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import back, location, weight
from gradcheck_doctor.rules.progress import mild
from gradcheck_doctor.theory.activations import names

MODULES = {n.replace("_", "") for n in names()}


class MissingNonlinearity(Rule):
    """Two weight layers follow each other with only linear operations between: together they are one linear map.

    What it measures: pairs of linear or convolution layers with no activation, normalisation or maximum between them and no bottleneck; and
    whether an activation module was built but never called.

    Why it matters: the depth is paid for but buys nothing. A stack of four such layers learns what one learns.

    When it is harmless: low-rank pairs (a narrow middle), LoRA, depthwise-separable convolutions, attention projections, a pair beside
    other non-linearities: then it is info.

    Sources: NeuraLint (Nikanjam et al. 2021); UMLAUT (Schoop et al. 2021).
    """

    code = "GD204"
    name = "missing-nonlinearity"
    summary = "stacked linear layers with nothing non-linear between them"
    threshold = Threshold(2.0, None, "evidence: linear pairs, plus 2 for an activation built but never called", "trials in this project", info=1.0)
    order = 440
    explains = ()

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        pairs = [(a, b) for b in recording.operations if (a := _linear_feeder(recording, b)) is not None]
        if not pairs:
            return
        homes = {m.path.rpartition(".")[0] for m in recording.modules if m.calls > 0}           # a copy that runs without gradients has no calls at all
        unused = [m for m in recording.modules if m.type.lower() in MODULES and m.calls == 0 and m.library and m.path.rpartition(".")[0] in homes]
        nonlinear = sum(o.category == "activation" for o in recording.operations)
        value = len(pairs) + (2.0 if unused else 0.0) - (0.0 if unused or nonlinear == 0 else max(0.0, len(pairs) - 1.0))
        first = pairs[0][1]
        yield Measurement(value=value, module=first.module, modules=tuple(dict.fromkeys(b.module for _, b in pairs)), op=first.op,
                          location=unused[0].built if unused and unused[0].built else location(recording, first),
                          operations=tuple(b.index for _, b in pairs), cap=None if unused else mild(recording),
                          evidence={"pairs": len(pairs), "unused": unused[0].path if unused else "", "modules": [b.module for _, b in pairs][:8]})

    def message(self, m: Measurement) -> str:
        unused = f"; {m.evidence['unused']} is built but never called" if m.evidence["unused"] else ""
        places = f" ({m.evidence['pairs']} times)" if m.evidence["pairs"] > 1 else ""
        return f"a weight layer feeds the next with nothing non-linear between, so both are one linear map{places}{unused}"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("add-activation", "Put the activation between the layers", kind="activation", modules=m.modules, span=m.location,
                             arguments={"to": "relu", "unused": m.evidence["unused"]}),)


def _linear_feeder(recording: Recording, operation: Operation) -> Operation | None:
    """The layer whose output reaches `operation` through linear operations only, where that is no known design."""
    second = weight(recording, operation)
    if operation.category != "layer" or second is None or operation.attributes.get("groups", 1) not in (1, None):
        return None
    feeder = back(recording, operation, ("shape", "scale"))
    if feeder is None or feeder.category != "layer" or len(recording.consumers[feeder.index]) > 1:
        return None
    first = weight(recording, feeder)
    if first is None or _designed(recording, feeder, operation, first, second):
        return None
    return feeder


def _designed(recording: Recording, a: Operation, b: Operation, first: ParameterRecord, second: ParameterRecord) -> bool:
    """A bottleneck, a grouped or pointwise convolution, a frozen part, the same weight twice."""
    middle = first.shape[0]
    inputs, outputs = first.shape[1], second.shape[0]
    groups = {recording.module[o.module].config.get("groups", 1) for o in (a, b) if o.module in recording.module}
    conv = a.op.startswith("conv") or b.op.startswith("conv")
    pointwise = conv and (set(first.shape[2:]) | set(second.shape[2:])) & {1} != set()
    return (middle < min(inputs, outputs) or groups - {1} != set() or pointwise or first.name == second.name
            or "transpose" in a.op + b.op or not (first.trainable and second.trainable) or second.shape[0] <= 2 and middle <= 4)
