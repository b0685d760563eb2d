"""What recurrent rules share: the recurrent operations of a recording and whether anything clips."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.records.ways import LAYERS, before
from gradcheck_doctor.rules.flow import once

EXPECTED = 100         # time steps beyond which a loss on the last step alone fades in any cell
REPEATS = 8            # times one weight is applied in a forward before we call it a recurrence


def recurrent_operations(recording: Recording) -> list[Operation]:
    """Fused recurrent layers and hand-written recurrences (a trainable layer that maps its own output on, many times in one forward)."""
    fused = [o for o in recording.operations if o.category == "recurrent" and _trainable(recording, o)]
    loops = [o for o in _first_uses(recording) if _calls(recording, o) >= REPEATS and _fed_back(recording, o)]
    return fused + loops


def _first_uses(recording: Recording) -> list[Operation]:
    """The first application of each weight."""
    firsts = [recording.operation(places[0]) for (_, parameters), places in _uses(recording).items() if parameters]
    return [o for o in firsts if o.category == "layer"]


def _trainable(recording: Recording, operation: Operation) -> bool:
    names = operation.parameters or (recording.module[operation.module].parameters if operation.module in recording.module else ())
    return any((p := recording.parameter.get(n)) is not None and p.trainable for n in names)


def _calls(recording: Recording, operation: Operation) -> int:
    """How often these weights were applied in one forward, from whatever place."""
    return len(_uses(recording)[operation.op, operation.parameters]) if operation.parameters else 0


@once
def _uses(recording: Recording) -> Mapping[tuple[str, tuple[str, ...]], list[int]]:
    """The operations that apply the same weights in the same way, in order."""
    found: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for operation in recording.operations:
        found.setdefault((operation.op, operation.parameters), []).append(operation.index)
    return found


def _fed_back(recording: Recording, operation: Operation) -> bool:
    """The last call depends on the first, and on an earlier one through no other weights: a state that the layer itself maps on, in a loop over time.

    Not the steps of a solver or a sampler through a network of several layers, nor independent items."""
    same = _uses(recording)[operation.op, operation.parameters]
    return len(same) > 1 and _leads(recording, same[:1], same[-1], True) and _leads(recording, same[:-1], same[-1], False)


def _leads(recording: Recording, starts: Sequence[int], end: int, weights: bool) -> bool:
    """A way leads from one of `starts` to `end`; through other layers with weights only if `weights`."""
    makers, goals = before(recording, [end], lambda o: weights or not o.parameters or o.category not in LAYERS), set(starts)
    return any(maker.index in goals for maker in makers)


def length(recording: Recording, operation: Operation) -> int:
    """Time steps: the time axis of a fused layer's output (the longer of the first two where the layout is unknown); calls of a hand-written one."""
    if operation.category != "recurrent":
        return max(operation.repeats, _calls(recording, operation))
    if operation.op.endswith("cell"):
        return max(operation.repeats, _calls(recording, operation), 1)
    if len(operation.shape) != 3:
        return 1
    batch_first = operation.attributes.get("batch_first")
    return max(operation.shape[:2]) if batch_first is None else operation.shape[1 if batch_first else 0]


def clips(recording: Recording) -> bool:
    return bool(recording.events_of("clip_norm") or recording.events_of("clip_value"))


def clip(span: Span | None) -> Prescription:
    return Prescription("clip-by-norm", "Clip the gradient by norm, 1.0, between backward and step", kind="clip", span=span, arguments={"max_norm": 1.0})
