"""What each process of a distributed training saw, and how that becomes one recording: plain numbers, standard library only.

Every figure on every rank carries how many ranks hold the same values (`copies`): 1 for a shard, the number of ranks for a replica.
Then one formula is right for both: norm^2 of the whole = sum over the ranks of norm^2 / copies.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from gradcheck_doctor.records.recording import Event, LossRecord, Observed, Operation, ParameterRecord, ParameterStep, Recording, StepRecord
from gradcheck_doctor.records.sites import BlindSpot
from gradcheck_doctor.records.summaries import Summary, Units

Key = tuple[str, str, int]                       # (module, op, ordinal): the same call on every rank
Extremes = tuple[tuple[float, ...], tuple[float, ...], int]


@dataclass(frozen=True)
class UnitShare:
    """Activity of each unit: largest and smallest value, or twice the count of saturated samples, and the samples seen."""

    saturating: bool
    total: Extremes | None = None
    first: Extremes | None = None
    last: Extremes | None = None


@dataclass(frozen=True)
class OperationShare:
    """One operation as one rank saw it: (forward, gradient) by step."""

    observed: Mapping[int, tuple[Summary | None, Summary | None]]
    units: UnitShare | None = None


@dataclass(frozen=True)
class ParameterShare:
    """A sharded parameter: the elements on this rank, how many ranks hold them, what was seen of them, and a few values as they were at first."""

    record: ParameterRecord
    count: int
    copies: int
    steps: Mapping[int, ParameterStep] = field(default_factory=dict)
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Share:
    """All that one rank contributes to the report.

    `squares` is this rank's part of the squared global gradient norm by step, `clips` the same before each clip, in order.
    `averaged`: gradients are averaged over the ranks (DDP, FSDP).
    """

    rank: int
    steps: int
    averaged: bool = False
    operations: Mapping[Key, OperationShare] = field(default_factory=dict)
    parameters: Mapping[str, ParameterShare] = field(default_factory=dict)
    losses: Mapping[int, float] = field(default_factory=dict)
    squares: Mapping[int, float] = field(default_factory=dict)
    clips: tuple[float | None, ...] = ()
    loss_values: tuple[float | None, ...] = ()
    blind_spots: tuple[BlindSpot, ...] = ()


def merge(recording: Recording, shares: Sequence[Share], world: int) -> Recording:
    """Rank 0's `recording` with the figures of all ranks; `shares[0]` is rank 0's own.

    Where a rank is missing, figures of shards are left out (not measured is not passed) and the rest is what the present ranks saw;
    a blind spot says so.
    """
    whole = len(shares) == world
    own = shares[0]
    averaged = any(s.averaged for s in shares)
    notes = [] if whole else [BlindSpot("", _absent(shares, world, bool(own.parameters)))]
    operations = tuple(_operation(o, shares, len(shares) if averaged else 1) for o in recording.operations)
    alone = sum(1 for o in operations if o.observed and not all(_key(o) in s.operations for s in shares))
    if alone:
        notes.append(BlindSpot("", f"{alone} operations ran on some ranks only: their figures are those of rank 0"))
    notes += [replace(b, reason=f"rank {s.rank}: {b.reason}") for s in shares[1:] for b in s.blind_spots if b not in own.blind_spots]
    steps = tuple(_step(s, shares, whole, bool(own.parameters)) for s in recording.steps)
    return replace(
        recording, operations=operations, parameters=tuple(_parameter(p, shares, whole) for p in recording.parameters),
        parameter_steps={name: _parameter_steps(name, rows, shares, whole) for name, rows in recording.parameter_steps.items()}, steps=steps,
        curve=tuple((step, _mean_loss(step, value, shares)) for step, value in recording.curve), events=_events(recording.events, shares, whole),
        losses=tuple(_loss(loss, i, shares) for i, loss in enumerate(recording.losses)), blind_spots=(*recording.blind_spots, *notes),
        probe={**recording.probe, "ranks": f"{len(shares)} of {world}"})


def _absent(shares: Sequence[Share], world: int, sharded: bool) -> str:
    present = {s.rank for s in shares}
    absent = ", ".join(str(r) for r in range(world) if r not in present)
    left_out = "; norms of sharded parameters are left out" if sharded else ""
    return f"nothing was handed in by rank {absent}: the figures are those of the other ranks{left_out}"


def _key(operation: Operation) -> Key:
    return operation.module, operation.op, operation.ordinal


# -- activations ------------------------------------------------------------------------------------------------------------------------
def _operation(operation: Operation, shares: Sequence[Share], divisor: int) -> Operation:
    """Summaries of the steps that all ranks observed; gradients as of the averaged loss (each rank's loss counts 1 / `divisor`)."""
    found = [s.operations.get(_key(operation)) for s in shares]
    seen = [f for f in found if f is not None]
    if len(seen) < len(shares) or len(shares) == 1:
        return operation
    common = set.intersection(*(set(f.observed) for f in seen))
    join = _scalar if operation.category == "loss" and not operation.shape else _summary
    observed = tuple(Observed(o.step, join([f.observed[o.step][0] for f in seen], 1), join([f.observed[o.step][1] for f in seen], divisor), o.dtype)
                     for o in operation.observed if o.step in common)
    units = [f.units for f in seen]
    if operation.units is None or any(u is None for u in units):
        return replace(operation, observed=observed)
    activities = [u for u in units if u is not None]
    return replace(operation, observed=observed, units=_units([u.total for u in activities], activities[0].saturating),
                   units_first=_units([u.first for u in activities], activities[0].saturating),
                   units_last=_units([u.last for u in activities], activities[0].saturating))


def _summary(parts: Sequence[Summary | None], divisor: int) -> Summary | None:
    present = [p for p in parts if p is not None]
    if len(present) < len(parts):
        return None
    merged = present[0]
    for part in present[1:]:
        merged = merged.merge(part)
    if divisor == 1:
        return merged
    return replace(merged, mean=merged.mean / divisor, std=merged.std / divisor, rms=merged.rms / divisor, absmax=merged.absmax / divisor,
                   norm=merged.norm / divisor, sample_std=merged.sample_std / divisor, minimum=merged.minimum / divisor, maximum=merged.maximum / divisor)


def _scalar(parts: Sequence[Summary | None], divisor: int) -> Summary | None:
    """A scalar loss: the loss of all is the mean of the ranks' losses, and its own gradient is what each rank's is."""
    present = [p for p in parts if p is not None]
    if len(present) < len(parts):
        return None
    mean = sum(p.mean for p in present) / len(present)
    return replace(present[0], mean=mean, rms=abs(mean), absmax=abs(mean), norm=abs(mean), minimum=mean, maximum=mean, finite=all(p.finite for p in present))


def _units(parts: Sequence[Extremes | None], saturating: bool) -> Units | None:
    """A unit is dead only when it is dead on every rank."""
    present = [p for p in parts if p is not None]
    if not present or len({len(p[0]) for p in present}) > 1:
        return None
    samples = sum(p[2] for p in present)
    columns = list(zip(*(p[0] for p in present), strict=True))
    if saturating:
        return units_of([sum(c) for c in columns], [], samples, saturating=True)
    lows = [min(c) for c in zip(*(p[1] for p in present), strict=True)]
    return units_of([max(c) for c in columns], lows, samples, saturating=False)


SATURATED_SHARE = 0.95          # of the samples on which a unit must be saturated


def units_of(high: Sequence[float], low: Sequence[float], samples: int, *, saturating: bool) -> Units:
    """`Units` from each unit's largest and smallest value, or (saturating) from its number of saturated samples in `high`.

    >>> units_of([0.0, 1.5], [0.0, 0.5], 8, saturating=False)
    Units(units=2, samples=8, dead=1, saturated=0, always_on=1, indices=(0,), flat_share=0.0)
    """
    if saturating:
        chosen = [i for i, count in enumerate(high) if count >= SATURATED_SHARE * samples]
        return Units(len(high), samples, saturated=len(chosen), indices=tuple(chosen[:64]), flat_share=sum(high) / max(len(high) * samples, 1))
    chosen = [i for i, value in enumerate(high) if value <= 0]
    return Units(len(high), samples, dead=len(chosen), always_on=sum(value > 0 for value in low), indices=tuple(chosen[:64]))


# -- parameters -------------------------------------------------------------------------------------------------------------------------
def _parts(name: str, shares: Sequence[Share]) -> list[ParameterShare]:
    return [p for s in shares if (p := s.parameters.get(name)) is not None]


def _parameter(record: ParameterRecord, shares: Sequence[Share], whole: bool) -> ParameterRecord:
    """A sharded parameter described over all its shards; its scheme is not a matter of adding up, see observe.distributed."""
    parts = [p for p in _parts(record.name, shares) if p.count]
    if not parts:
        return record
    total = sum(p.count / p.copies for p in parts)
    mean = sum(p.record.mean * p.count / p.copies for p in parts) / total
    variance = sum((p.record.std**2 + (p.record.mean - mean) ** 2) * p.count / p.copies for p in parts) / total
    std = math.sqrt(variance)
    return replace(
        record, mean=mean, std=std, rms=math.hypot(mean, std), absmax=max(p.record.absmax for p in parts),
        gain=None if record.fan_in is None else std * math.sqrt(record.fan_in),
        rows_equal=record.rows_equal and whole and len({p.record.mean for p in parts}) == 1, orthogonal=all(p.record.orthogonal for p in parts))


def _parameter_steps(name: str, rows: tuple[ParameterStep, ...], shares: Sequence[Share], whole: bool) -> tuple[ParameterStep, ...]:
    parts = _parts(name, shares)
    if not parts:
        return rows
    if not whole:
        return ()
    return tuple(_parameter_step(row, [(p, seen) for p in parts if (seen := p.steps.get(row.step)) is not None])
                 for row in rows if all(row.step in p.steps or not p.count for p in parts))


def _parameter_step(row: ParameterStep, parts: Sequence[tuple[ParameterShare, ParameterStep]]) -> ParameterStep:
    """One reduction over the shards: norms as the root of summed squares, ratios from summed squares."""
    norms = [s.grad_norm**2 / p.copies for p, s in parts if s.grad_norm is not None]
    norm = math.sqrt(sum(norms)) if norms else None
    total = sum(p.count / p.copies for p, _ in parts)
    squares = [(s.weight_norm**2 / p.record.count * p.count / p.copies, s) for p, s in parts if s.weight_norm is not None and s.update_ratio is not None]
    square = sum(q for q, _ in squares) / total if squares else None
    change = sum(q * s.update_ratio**2 for q, s in squares if q > 0 and s.update_ratio is not None) / total if squares else None
    ratio = None if square is None or change is None else math.sqrt(change / square) if square > 0 else row.update_ratio
    lost = [(s.lost, p.count / p.copies) for p, s in parts if s.lost is not None]
    return replace(
        row, grad_norm=norm, update_ratio=ratio, weight_norm=None if square is None else math.sqrt(square * row_count(parts)),
        lost=sum(v * n for v, n in lost) / sum(n for _, n in lost) if lost else None,
        zero_gradient=norm == 0.0, finite=all(s.finite for _, s in parts))


def row_count(parts: Sequence[tuple[ParameterShare, ParameterStep]]) -> int:
    """Elements of the whole parameter."""
    return parts[0][0].record.count


# -- steps, losses, events ----------------------------------------------------------------------------------------------------------------
def _step(row: StepRecord, shares: Sequence[Share], whole: bool, sharded: bool) -> StepRecord:
    norm = row.grad_norm
    squares = [s.squares.get(row.step) for s in shares]
    known = [q for q in squares if q is not None]
    if whole and len(known) == len(squares):
        norm = math.sqrt(sum(known))
    elif sharded:
        norm = None
    return replace(row, grad_norm=norm, loss=None if row.loss is None else _mean_loss(row.step, row.loss, shares))


def _mean_loss(step: int, value: float, shares: Sequence[Share]) -> float:
    """Mean over the ranks that saw this step's loss."""
    others = [v for s in shares[1:] if (v := s.losses.get(step)) is not None]
    return (value + sum(others)) / (1 + len(others))


def _events(events: tuple[Event, ...], shares: Sequence[Share], whole: bool) -> tuple[Event, ...]:
    """The norm before each clip, over all shards."""
    result, place = [], 0
    for event in events:
        if event.kind in ("clip_norm", "clip_value"):
            parts = [s.clips[place] if place < len(s.clips) else None for s in shares]
            known = [p for p in parts if p is not None]
            if whole and len(known) == len(parts):
                event = replace(event, before=math.sqrt(sum(known)))
            elif shares[0].parameters:
                event = replace(event, before=None)
            place += 1
        result.append(event)
    return tuple(result)


def _loss(record: LossRecord, place: int, shares: Sequence[Share]) -> LossRecord:
    values = [v for s in shares if place < len(s.loss_values) and (v := s.loss_values[place]) is not None]
    return replace(record, value=sum(values) / len(values)) if values and record.value is not None else record
