"""How rules read a recording: places, neighbours, runs of layers, ratios of signals and gradients."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import zip_longest
from statistics import median
from typing import TypeVar

from gradcheck_doctor.records.recording import LossRecord, Operation, ParameterRecord, Recording
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.records.summaries import Summary
from gradcheck_doctor.records.ways import behind, is_output
from gradcheck_doctor.rules.progress import phase_start
from gradcheck_doctor.theory.activations import Activation, activation

TRANSPARENT = frozenset({"shape", "dropout", "scale", "reduce", "other"})     # neither ends a run nor makes it non-linear
SMALL_HEAD = 0.1       # of the variance of PyTorch's default, which is 1 / (3 fan_in)
R = TypeVar("R")
FEW = 8                # values a channel, below which batch statistics are noise (rule small-batch-norm)


def once(reading: Callable[[Recording], R]) -> Callable[[Recording], R]:
    """What many rules and findings ask of a recording is found once, and kept with it."""
    name = f"_{reading.__name__}"

    @wraps(reading)
    def kept(recording: Recording) -> R:
        found = vars(recording)
        if name not in found:
            found[name] = reading(recording)
        value: R = found[name]
        return value

    return kept


def location(recording: Recording, operation: Operation) -> Span | None:
    """The user's expression to blame: the constructor of a leaf library module, else the call. What runs outside of every module was called by the loop."""
    module = recording.module.get(operation.module) if operation.module_type else None
    if module is not None and module.built is not None and module.library:
        return module.built
    return operation.called or (module.built if module is not None else None)


def typical(recording: Recording, operations: Sequence[Operation]) -> Operation:
    """The operation to show for many: the first of those that the commonest expression built (the loop's, not the input layer's)."""
    places = [location(recording, o) for o in operations]
    return operations[max(range(len(operations)), key=lambda i: (places.count(places[i]), -i))]


def weight(recording: Recording, operation: Operation) -> ParameterRecord | None:
    """The weight (two or more axes) that a layer applies."""
    for name in operation.parameters:
        record = recording.parameter.get(name)
        if record is not None and len(record.shape) >= 2:
            return record
    return None


@once
def norm_kind(recording: Recording) -> str:
    """The normalisation to insert: `group`, without statistics of the batch, where a real batch gives a channel fewer than 8 values; else `batch`."""
    layers = [o for o in recording.operations if o.category == "layer" and len(o.shape) > 1 and o.op != "embedding"]
    made_up = any(i.synthetic for i in recording.inputs)
    return "group" if layers and not made_up and min(o.shape[0] * math.prod(o.shape[2:]) for o in layers) < FEW else "batch"


def bias(recording: Recording, operation: Operation) -> ParameterRecord | None:
    """The additive vector of a layer."""
    return next((r for n in operation.parameters if (r := recording.parameter.get(n)) is not None and len(r.shape) == 1), None)


def back(recording: Recording, operation: Operation, through: Iterable[str] = TRANSPARENT) -> Operation | None:
    """The nearest producer that is not of a category in `through`; None at the input or where two signals meet."""
    passed = frozenset(through)
    current = operation
    while True:
        makers = [recording.operations[p] for p in current.producers]
        if not makers or current.category != "recurrent" and len(makers) > 1 and makers[0].category == "merge":
            return makers[0] if makers else None
        current = makers[0]
        if current.category == "input" and len(makers) > 1:          # adjacency @ signal: a constant of the data mixes the samples
            current = next((m for m in makers if m.category != "input"), current)
        if current.category not in passed:
            return current


def ahead(recording: Recording, operation: Operation, through: Iterable[str] = TRANSPARENT) -> Operation | None:
    """The nearest single consumer that is not of a category in `through`; None where the value is used more than once or not at all."""
    passed = frozenset(through)
    current = operation
    while True:
        users = recording.consumers[current.index]
        if len(users) != 1:
            return None
        current = recording.operations[users[0]]
        if current.category not in passed:
            return current


def phi(operation: Operation) -> Activation | None:
    """The theory's entry for an activation operation."""
    slope = operation.attributes.get("negative_slope")
    return activation(operation.op, float(slope) if slope is not None else None)


@dataclass(frozen=True)
class Run:
    """Weight layers in a row with only activations, pooling, dropout and shape changes between them.

    `before[i]` is the activation in front of `layers[i]` (None: none), `after` the one behind the last.
    """

    layers: tuple[Operation, ...]
    before: tuple[Operation | None, ...]
    after: Operation | None
    recurrent: bool          # the same weight is applied more than once: depth here is time

    @property
    def indices(self) -> tuple[int, ...]:
        return tuple(o.index for o in self.layers) + tuple(o.index for o in self.before if o is not None)

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(o.module for o in self.layers))

    @property
    def activations(self) -> tuple[Operation, ...]:
        return tuple(o for o in self.before if o is not None) + ((self.after,) if self.after is not None else ())


def _feeder(recording: Recording, layer: Operation) -> tuple[Operation | None, Operation | None]:
    """(layer before, activation between) when `layer` continues a run."""
    seen: Operation | None = None
    current: Operation | None = layer
    while True:
        assert current is not None
        if current.attributes.get("own_gradient"):
            return None, seen                             # what the user's autograd function hands on is another gradient
        current = back(recording, current, TRANSPARENT | {"pool"})
        if current is None or len(recording.consumers[current.index]) > 1:
            return None, seen                             # the value also goes elsewhere: a skip starts here
        if current.category == "activation" and phi(current) is not None:
            seen = seen or current
            continue
        fits = current.category == "layer" and weight(recording, current) is not None and not _apart(recording, current, layer)
        return (current, seen) if fits else (None, seen)


@once
def runs(recording: Recording) -> tuple[Run, ...]:
    """All maximal runs of at least two layers, longest first; shared layers make a recurrent run."""
    layers = [o for o in recording.operations if o.category == "layer" and (w := weight(recording, o)) is not None and o.requires_grad
              and (w.scheme != "zeros" or w.rows_equal)]                  # a zero start that training left behind is a design
    feeders = {o.index: _feeder(recording, o) for o in layers}
    fed = {f.index for f, _ in feeders.values() if f is not None}
    found = []
    for last in (o for o in layers if o.index not in fed):
        chain, between = [last], []
        while (feeder := feeders[chain[-1].index][0]) is not None and feeder.index in feeders:
            between.append(feeders[chain[-1].index][1])
            chain.append(feeder)
        between.append(feeders[chain[-1].index][1])
        if len(chain) >= 2:
            chain.reverse()
            between.reverse()
            names = [o.parameters for o in chain]
            found.append(Run(tuple(chain), tuple(between), _behind(recording, last), recurrent=len(set(names)) < len(names)))
    return tuple(sorted(found, key=lambda r: (-len(r.layers), r.layers[0].index)))


@once
def _owners(recording: Recording) -> dict[str, frozenset[int]]:
    """The optimizers that step each parameter."""
    owners: dict[str, frozenset[int]] = {}
    for number, record in enumerate(recording.optimizers):
        for name in (n for g in record.groups for n in g.parameters):
            owners[name] = owners.get(name, frozenset()) | {number}
    return owners


def _apart(recording: Recording, low: Operation, high: Operation) -> bool:
    """The two layers are of different networks, each with an optimizer of its own: a generator and its critic."""
    owners, a, b = _owners(recording), weight(recording, low), weight(recording, high)
    if a is None or b is None or a.name not in owners or b.name not in owners:
        return False
    return a.name.partition(".")[0] != b.name.partition(".")[0] and owners[a.name].isdisjoint(owners[b.name])


def _behind(recording: Recording, layer: Operation) -> Operation | None:
    return following if (following := ahead(recording, layer)) is not None and following.category == "activation" else None


# -- ratios ------------------------------------------------------------------------------------------------------------------------------
def start(recording: Recording, operation: Operation) -> list[tuple[Summary | None, Summary | None]]:
    """(forward, gradient) of the first three observed steps, or of the last where zero weights hide the first."""
    seen = operation.observed
    seen = seen[1:] or seen if recording.notes.get("warmed") else seen[:3]
    return [(s.forward, s.gradient) for s in seen]


def untouched(recording: Recording, operation: Operation) -> list[tuple[Summary | None, Summary | None]]:
    """The first observed step alone, before any update: what later ones show, the steps may have done. Those of `start` where zero weights hide the first."""
    seen = start(recording, operation)
    return seen if recording.notes.get("warmed") else seen[:1]


def end(recording: Recording, operation: Operation) -> list[tuple[Summary | None, Summary | None]]:
    """The last five forwards and the last five gradients; late in a training not every observed step has both."""
    return list(zip_longest([s.forward for s in operation.observed if s.forward][-5:], [s.gradient for s in operation.observed if s.gradient][-5:]))


def _nearest_to_one(candidates: Sequence[float]) -> float | None:
    usable = [c for c in candidates if c > 0 and math.isfinite(c)]
    return min(usable, key=lambda c: abs(math.log(c))) if usable else None


def far_end(recording: Recording, run: Run) -> Operation:
    """The last layer of a run, or the last but one in front of a head that was made small on purpose.

    A head with a tenth of the default variance or less (the 0.01 of policy heads and detectors) scales the whole gradient by one factor, the same for
    all layers below it: that is no decay from layer to layer."""
    head = weight(recording, run.layers[-1])
    small = head is not None and head.init_span is not None and head.gain is not None and head.gain**2 < SMALL_HEAD / 3.0
    return run.layers[-2] if small and len(run.layers) > 2 and is_output(recording, run.layers[-1]) else run.layers[-1]


When = Callable[[Recording, Operation], "list[tuple[Summary | None, Summary | None]]"]


def gradient_ratio(recording: Recording, low: Operation, high: Operation, when: When = start) -> float | None:
    """Size of the gradient at `low`'s output relative to that at `high`'s; median over steps, None where not measured.

    Per element and as a whole: the tensor norm does not change with width under fan_in initialisation, the rms does not change with the
    batch or the area; the ratio nearer to 1 of the two is taken, so that a change of shape is never called vanishing."""
    ratios = []
    for (_, a), (_, b) in zip(when(recording, low), when(recording, high), strict=False):
        if a is None or b is None or not a.finite or not b.finite or b.norm == 0:
            continue
        if a.norm == 0:
            ratios.append(0.0)
        elif (ratio := _nearest_to_one([x / y for x, y in ((a.rms, b.rms), (a.norm, b.norm)) if y > 0])) is not None:       # the square of tiny values is 0
            ratios.append(ratio)
    return median(ratios) if ratios else None


def signal_ratio(recording: Recording, low: Operation, high: Operation, when: When = start) -> float | None:
    """What the batch varies at `high`'s output relative to `low`'s (the signal that carries information); None where not measured."""
    ratios = []
    for (a, _), (b, _) in zip(when(recording, low), when(recording, high), strict=False):
        if a is None or b is None or not a.finite or not b.finite or b.count < 2:      # a single number varies with nothing
            continue
        first, last = (a.sample_std, b.sample_std) if a.sample_std > 0 and b.sample_std >= 0 else (a.std, b.std)
        if first > 0:
            ratios.append(last / first)
    return median(ratios) if ratios else None


def in_band(ratio: float) -> bool:
    """Signal or gradient at one end of a run is within a factor of 100 of that at the other."""
    return 1e-2 <= ratio <= 1e2


def near_band(ratio: float) -> bool:
    """Within [1e-2, 1e2] or at most a factor of 2 outside: another draw of the same weights may lie inside."""
    return 0.5e-2 < ratio < 2e2


# -- output ------------------------------------------------------------------------------------------------------------------------------
def loss_input(recording: Recording, loss: LossRecord) -> Operation | None:
    """The first operation behind the loss's prediction that is not a mere change of shape."""
    if not 0 <= loss.operation < len(recording.operations):
        return None
    operation = recording.operations[loss.operation]
    if operation.category != "loss" and operation.op != "sub" or not operation.producers:
        return None
    makers = [recording.operations[p] for p in operation.producers]
    current = next((o for o in makers if o.requires_grad and o.category != "input"), makers[0])
    while current.category in ("shape", "dropout") and current.producers:
        current = recording.operations[current.producers[0]]
    return current


def is_gate(recording: Recording, operation: Operation) -> bool:
    """Its value multiplies another signal (a gate, a mask, squeeze and excitation), or is part of a recurrent step."""
    users = behind(recording, [operation.index], lambda o: o.category in ("shape", "scale", "dropout"))
    return any(user.op in ("mul", "lerp", "rsub", "addcmul", "where", "matmul", "bmm") for user in users)


def untrained(recording: Recording, operations: Iterable[Operation]) -> bool:
    """None of the weights is known to be trained or loaded."""
    weights = [w for o in operations if (w := weight(recording, o)) is not None]
    return bool(weights) and not any(w.trained for w in weights)


def bad_batch(recording: Recording) -> int | None:
    """First step whose loss and gradient leap to ten times all before it although the weights had hardly moved (a thousand times where they had,
    and the loss had fallen): the batch did it, not the steps."""
    begin, norms, losses, calm = phase_start(recording), dict[int, float](), dict(recording.curve), True
    ratios = {step: ratio for step, ratio in updates_by_step(recording).items() if step >= begin}
    for row in recording.steps:
        if row.step < begin or row.grad_norm is None or row.step not in losses:
            continue
        before = [losses[s] for s in norms]
        least = 10 if calm else 1000                       # steps that are large themselves grow a loss tenfold, not a thousandfold at once
        fell = len(before) >= 5 and before[-1] <= before[0]
        if len(norms) >= 5 and (calm or fell) and losses[row.step] > least * max(before) and row.grad_norm > 10 * max(norms.values()):
            return row.step
        norms[row.step] = row.grad_norm
        calm = calm and ratios.get(row.step, 0.0) < 3e-2
    return None


def updates_by_step(recording: Recording) -> dict[int, float]:
    """Median over the weight matrices of rms(change) / rms(weight), by observed step."""
    weights = {p.name for p in recording.parameters if p.trainable and len(p.shape) >= 2 and p.rms > 0}
    steps: dict[int, list[float]] = {}
    for name in weights:
        for row in recording.parameter_steps.get(name, ()):
            if row.update_ratio is not None:
                steps.setdefault(row.step, []).append(row.update_ratio)
    return {step: median(values) for step, values in sorted(steps.items())}


def first_nonfinite(recording: Recording) -> int | None:
    """First step whose loss or gradient norm was not finite: what comes after it says nothing about the cause."""
    seen = [*recording.curve, *((s.step, s.grad_norm) for s in recording.steps if s.grad_norm is not None)]
    return min((step for step, value in seen if not math.isfinite(value)), default=None)
