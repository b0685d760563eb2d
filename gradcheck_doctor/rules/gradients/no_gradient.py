from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, ParameterRecord, Recording
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.records.ways import LAYERS, before, behind
from gradcheck_doctor.rules.attention import MATRIX
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import location
from gradcheck_doctor.rules.progress import learned

STEPS_FLAT = frozenset({"round", "floor", "ceil", "sign", "heaviside", "trunc"})
CHOOSING = frozenset({"getitem", "select", "narrow", "index_select", "chunk", "split", "unbind", "gather", "where", "masked_fill", "setitem"})
JOINING = frozenset({"cat", "stack", "hstack", "vstack"})
PRODUCTS = MATRIX | {"mul"}
WITHHELD = ("detach", "data", "no_grad", "numpy", "tolist")       # the value goes on, its gradient does not: by intent where the weights were trained before
FEWEST = 5                                     # observed steps before which gradients were gone
_PART = re.compile(r"^(.*?)\.?(?:parametrizations\.(\w+)\.original\d*|(weight\w*)_(?:g|v|orig))$")


class Weight(NamedTuple):
    """A weight matrix, of one parameter or of several: weight_norm keeps size and direction apart."""

    name: str
    module: str
    parts: tuple[ParameterRecord, ...]


class Barrier(NamedTuple):
    """The call that ends the gradient, empty where nothing of the kind was seen."""

    op: str = ""
    span: Span | None = None
    module: str = ""
    operation: int = -1
    gated: bool = False            # the gradient ends where a parameter that starts at 0 is multiplied by it


class NoGradient(Rule):
    """A trainable parameter that takes part in the forward pass receives no gradient, or exactly zero, while others do.

    What it measures: share of the model's weight matrices whose gradient was absent or exactly 0 on every observed step although their layer
    ran, and what cuts them off (round, sign, argmax, detach, no_grad, numpy) if it was seen. Also gradients that zero_grad() clears between backward and step,
    and a loss that is cut off from the model as a whole.

    Why it matters: such a layer never learns, silently.

    When it is harmless: unused branches and experts, embedding rows not in the batch, biases before a normalisation, alternating GAN steps; pretrained
    features that are detached on purpose. A layer from whose output no way leads to the loss is info; so is one of whose output only parts are used that it
    does not reach, say because they are written over, and, before any step, a branch that a parameter of zeros multiplies (ReZero).

    Sources: UMLAUT (Schoop et al. 2021); Bengio et al. 2013 (arXiv:1308.3432) for the straight-through cure of round and sign.
    """

    code = "GD303"
    name = "no-gradient"
    summary = "a trainable layer that ran gets no gradient"
    threshold = Threshold(1e-9, 1e-9, "share of the trained weights", "one layer is enough")
    order = 430
    explains = ("GD301", "GD702", "GD307", "GD201")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        nothing = _thrown_away(recording) or _cut_off(recording)
        if nothing is not None:
            yield nothing
            return
        weights = _weights(recording)
        used = {name for operation in recording.operations for name in operation.parameters}         # those of a ParameterList, which is never called
        ran = [w for w in weights if (m := recording.module.get(w.module)) is not None and m.calls > 0 or any(p.name in used for p in w.parts)]
        silent = [w for w in ran if _silent(recording, w)]
        groups: dict[Barrier | None, list[Weight]] = {}
        gates = _gates(recording)
        for weight in silent if len(silent) < len(ran) or _others_learn(recording) else ():
            groups.setdefault(_fate(recording, weight, gates), []).append(weight)
        for barrier, cut in groups.items():
            yield self._cut(recording, barrier, cut, len(ran))
        dark, row = _dark(recording, weights)
        if dark:
            barrier = Barrier("no_grad", row["span"])
            yield self._cut(recording, barrier, [w for w in dark if not _trained(w)] or dark, len(weights), block=row["block"])

    def _cut(self, recording: Recording, barrier: Barrier | None, cut: list[Weight], of: int, block: bool = False) -> Measurement:
        first = recording.module.get(cut[0].module)
        op = barrier.op if barrier is not None else ""
        fed_zeros = learned(recording) and all(_fed_zeros(recording, w) for w in cut)
        harmless = barrier is None or barrier.gated or fed_zeros or len(recording.optimizers) > 1 or bool(recording.notes.get("warmed")) or (
            all(map(_trained, cut)) if op in WITHHELD else not op and _behind_zeros(recording))
        dead = barrier is not None and not op and not barrier.gated and any(o.units is not None and o.units.dead_fraction == 1.0 for o in recording.operations)
        place = barrier.span if barrier is not None and op else first.built if first is not None else None
        return Measurement(value=len(cut) / of, module=barrier.module if barrier is not None and barrier.module else cut[0].module, location=place,
                           modules=tuple(dict.fromkeys(w.module for w in cut)), op=op, cap="info" if harmless else None,
                           operations=(barrier.operation,) if barrier is not None and barrier.operation >= 0 else (),
                           evidence={"parameters": [w.name for w in cut][:8], "count": len(cut), "of": of, "used": barrier is not None,
                                     "barrier": op or ("dead ReLU" if dead else ""), "block": block, "gated": barrier is not None and barrier.gated,
                                     **({"zeros": True} if len(cut) > 1 and all(p.scheme == "zeros" for w in cut for p in w.parts) else {})})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        if "anew" in e:
            return (f"no weight gets a gradient: on all {e['reached']} observed steps the loss begins at a tensor made anew with requires_grad, "
                    "which is not what the model computed (argmax(), item(), detach() and numpy() end the gradient)")
        if "reached" in e:
            return (f"no weight gets a gradient: on all {e['reached']} observed steps backward begins at a value that is cut off from the model "
                    "(item(), detach(), a tensor made anew from numbers)")
        if "steps" in e:
            return f"the gradients are set to zero between backward and step, on all {e['steps']} observed steps, so no step changes a weight"
        names = ", ".join(e["parameters"][:3])
        if not e["used"]:
            return f"{e['count']} of {e['of']} weights get no gradient ({names}): no use of what they compute by the loss was seen; freeze or remove them"
        if e["barrier"] == "no_grad":
            return f"{e['count']} of {e['of']} weights of the optimizer are never trained ({names}): their layers run under no_grad"
        if e["gated"]:
            return f"{e['count']} of {e['of']} weights get no gradient at first ({names}): what they compute is multiplied by a parameter that starts at 0"
        if "zeros" in e and not e["barrier"]:
            return (f"{e['count']} of {e['of']} weights that take part get no gradient ({names}): all of them start at 0, and what is multiplied by 0 "
                    "has none; draw them at random")
        cause = f": {e['barrier']} {'lets no gradient through' if e['barrier'] in WITHHELD else 'has no slope'}" if e["barrier"] else ""
        return f"{e['count']} of {e['of']} weights that take part get no gradient ({names}){cause}"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if "reached" in m.evidence:
            return ()
        if "steps" in m.evidence:
            return (Prescription("move-zero-grad", "Call zero_grad() in front of backward", kind="optimizer", span=m.location),) if m.evidence["between"] else ()
        barrier = m.evidence["barrier"]
        if barrier in STEPS_FLAT:
            return (Prescription("straight-through", f"Pass the gradient straight through {barrier}", kind="other", modules=(m.module,),
                                 span=m.location, arguments={"op": barrier}),)
        if barrier in ("detach", "data"):
            return (Prescription("remove-detach", f"Let the gradient through: without {barrier}", modules=m.modules, span=m.location,
                                 arguments={"by": barrier}),)
        if m.evidence["block"]:
            return (Prescription("leave-no-grad", "Run these layers with gradients: without no_grad", modules=m.modules, span=m.location),)
        return ()


def _weights(recording: Recording) -> list[Weight]:
    """The trainable weight matrices of which steps were seen; those of a teacher or target network are in no optimizer."""
    found: dict[str, Weight] = {}
    for record in recording.parameters:
        if record.trainable and len(record.shape) >= 2 and recording.parameter_steps.get(record.name) and record.in_optimizer is not False:
            part = _PART.match(record.name)
            name = f"{part[1]}.{part[2] or part[3]}".lstrip(".") if part else record.name
            module = part[1] if part else record.module
            found[name] = Weight(name, module, (*(found[name].parts if name in found else ()), record))
    return list(found.values())


def _silent(recording: Recording, weight: Weight) -> bool:
    return all(not row.grad_norm for part in weight.parts for row in recording.parameter_steps[part.name])


def _trained(weight: Weight) -> bool:
    return all(part.trained for part in weight.parts)


def _fate(recording: Recording, weight: Weight, gates: set[int]) -> Barrier | None:
    """What ends the gradient on every way from a weight to the loss; None where no way leads there at all, or none of its values goes it."""
    names = {part.name for part in weight.parts}
    module = recording.module.get(weight.module)
    uses = [o.index for o in recording.operations if names & set(o.parameters) or o.module == weight.module and module is not None and module.leaf]
    if uses:
        barrier = _first_barrier(recording, uses)
        gated = barrier == Barrier() and any(o.index in gates for o in behind(recording, uses, lambda o: o.index not in gates))
        return Barrier(gated=True) if gated else barrier
    row = next((r for r in recording.notes.get("hidden", ()) if r["op"] != "no_grad" and names & set(r["parameters"])), None)
    return Barrier(row["op"], row["span"]) if row is not None else None


def _first_barrier(recording: Recording, start: Iterable[int]) -> Barrier | None:
    uses = [recording.operation(i) for i in start]
    places = [*uses, *behind(recording, [o.index for o in uses if _passes(o)], _passes)]
    if any(_passes(o) and not recording.consumers[o.index] for o in places):
        return None if _not_chosen(recording, [*uses, *places]) else Barrier()        # the loss is reached
    first = min((o for o in places if not _passes(o)), key=lambda o: o.index)
    return Barrier(first.op, first.called if first.op == "detach" else location(recording, first), first.module, first.index)


def _not_chosen(recording: Recording, ways: list[Operation]) -> bool:
    """Where the gradient ends on these ways, parts of a value are picked or joined: theirs is not among what is used."""
    on_way = {o.index for o in ways}
    for o in ways:
        if _reached(o):
            given = [p for p in before(recording, [o.index], lambda p: not p.observed) if p.index in on_way]
            measured = [p for p in given if p.observed]
            if measured and not any(map(_reached, measured)) and (o.op in JOINING or any(p.op in CHOOSING for p in given if not p.observed)):
                return True
    return False


def _reached(operation: Operation) -> bool:
    """By a gradient other than 0."""
    return any(seen.gradient is not None and seen.gradient.norm for seen in operation.observed)


def _passes(operation: Operation) -> bool:
    """It lets the gradient through."""
    return operation.op != "detach" and not (operation.op in STEPS_FLAT and operation.requires_grad)


def _dark(recording: Recording, weights: list[Weight]) -> tuple[list[Weight], dict[str, Any]]:
    """Weights that ran under no_grad, into a layer that is trained, and that nothing else changes either: not those of a moving average."""
    rows = [r for r in recording.notes.get("hidden", ()) if r["op"] == "no_grad" and _feeds(recording, r["to"])]
    dark = [w for w in weights if _silent(recording, w) and all(p.in_optimizer and _still(recording, p) for p in w.parts)
            and any(p.name in r["parameters"] for p in w.parts for r in rows)]
    return dark, next((r for r in rows if dark and dark[0].parts[0].name in r["parameters"]), {})


def _feeds(recording: Recording, start: int) -> bool:
    """The value goes through a layer that an optimizer trains."""
    layers = (o for o in (recording.operation(start), *behind(recording, [start])) if o.category in LAYERS)
    return any((p := recording.parameter.get(n)) is not None and p.trainable and p.in_optimizer for o in layers for n in o.parameters)


def _still(recording: Recording, parameter: ParameterRecord) -> bool:
    sizes = [row.weight_norm for row in recording.parameter_steps[parameter.name] if row.weight_norm is not None]
    return len(sizes) >= FEWEST and max(sizes) - min(sizes) <= 1e-6 * max(sizes)


def _thrown_away(recording: Recording) -> Measurement | None:
    """Backward made gradients, and on every step they were gone before the optimizer used them, so that it changed nothing."""
    row = next((r for r in recording.notes.get("thrown_away", ()) if r["steps"] == r["of"] >= FEWEST), None)
    if row is None or len(recording.optimizers) != 1:
        return None
    record = recording.optimizers[0]
    decays = any(g.weight_decay for g in record.groups)
    if not decays and any(r.update_ratio for rows in recording.parameter_steps.values() for r in rows):
        return None                                # an optimizer of the user's own that keeps its gradients elsewhere
    return Measurement(value=1.0, location=row["span"] or record.stepped, order=130, evidence={"steps": row["steps"], "between": row["span"] is not None})


def _fed_zeros(recording: Recording, weight: Weight) -> bool:
    """All that it is multiplied with is exactly 0: the state that an unrolled network begins with."""
    names = {p.name for p in weight.parts}
    seen = [s.forward for o in recording.operations if names & set(o.parameters) for s in o.observed if s.forward is not None]
    return bool(seen) and all(f.norm == 0 for f in seen) and all(p.scheme != "zeros" for p in weight.parts)


def _others_learn(recording: Recording) -> bool:
    """Biases or other vectors of the optimizer's get gradients, although no matrix does: two factors of zeros, say."""
    return recording.total_steps >= FEWEST and any(row.grad_norm for p in recording.parameters if p.in_optimizer and p.trainable and len(p.shape) < 2
                                                   for row in recording.parameter_steps.get(p.name, ()))


def _cut_off(recording: Recording) -> Measurement | None:
    """Backward ran on every step and reached nothing of the model: no parameter ever had a gradient, no weight moved, and the loss has no operation, or
    begins at a tensor of its own that was made to require a gradient."""
    rows = [row for p in recording.parameters if p.trainable and p.in_optimizer for row in recording.parameter_steps.get(p.name, ())]
    backward = recording.events_of("backward")
    steps = len({row.step for row in rows})
    if len(recording.optimizers) != 1 or not backward or steps < FEWEST or any(row.grad_norm is not None or row.update_ratio for row in rows):
        return None
    if not any(seen.gradient is not None for o in recording.operations for seen in o.observed):
        return Measurement(value=1.0, location=backward[0].span, order=130, evidence={"reached": steps})
    used = [recording.parameter.get(n) for o in recording.operations for n in o.parameters]
    if not used or any(p is None or p.in_optimizer or "<tensor" not in p.name for p in used):
        return None
    first = next(o for o in recording.operations if o.parameters)
    return Measurement(value=1.0, location=first.called or backward[0].span, order=130, op=first.op, evidence={"reached": steps, "anew": True})


def _gates(recording: Recording) -> set[int]:
    """Products that are exactly 0 because a factor comes from a parameter of zeros that is no bias (ReZero, gates of tanh(0)), before any training step."""
    def zero(operation: Operation) -> bool:
        return operation.first is None or operation.first.forward is None or operation.first.forward.norm == 0

    def starts(operation: Operation) -> bool:
        return any((p := recording.parameter.get(n)) is not None and p.scheme == "zeros" and "bias" not in p.role for n in operation.parameters)

    products = [o for o in recording.operations if o.op in PRODUCTS and o.first is not None and zero(o)] if recording.total_steps == 0 else []
    return {o.index for o in products if starts(o) or any(starts(p) for p in before(recording, [o.index], zero) if zero(p))}


def _behind_zeros(recording: Recording) -> bool:
    return any(p.scheme == "zeros" and len(p.shape) >= 2 for p in recording.parameters) and recording.total_steps == 0
