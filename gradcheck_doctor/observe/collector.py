"""Statistics of many tensors at once: each gives a small sample and a few exact reductions, everything else is computed together at the end.

A sample is one strided copy into a row of a buffer that is kept from step to step. No tensor outlives its step, and one copy brings all numbers
to the host. `min`, `max`, `sum` and `dot` run near memory speed on a CPU; `aminmax`, `var` and comparisons of whole tensors do not.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gradcheck_doctor.records.summaries import Summary

ROWS = 64          # samples (axis 0) looked at for statistics that need them, at most
GROUPS = 256       # buffers of different shape kept from step to step, at most
HALF = (torch.float16, torch.bfloat16)


class Plan(NamedTuple):
    """How to sample tensors of one layout: `rows` x `columns` elements at these strides, offsets turned within the steps."""

    rows: int
    columns: int
    row_stride: int
    column_stride: int
    row_step: int
    column_step: int
    whole: bool                     # the sample is the tensor


def plan_of(shape: tuple[int, ...], stride: tuple[int, ...], limit: int) -> Plan | None:
    """At most `limit` elements as a matrix (samples, features), evenly spaced; None for a layout that one stride can't walk.

    Axis 0 is the batch for every layout but the time-first one, where it is time.
    """
    samples = shape[0] if shape else 1
    features = math.prod(shape[1:])
    outer = stride[0] if shape else 1
    if samples > 1 and outer < features or not _dense(shape[1:], stride[1:]):
        return None
    row_step = samples // ROWS if samples * features > limit and samples > ROWS else 1
    rows = min(samples, ROWS) if row_step > 1 or samples * features > limit else samples
    wanted = max(1, limit // rows)
    column_step = 1
    if features > wanted:
        column_step = (features // wanted) | 1
        while features // column_step < wanted and column_step > 1:
            column_step -= 2
    columns = min(features, wanted)
    return Plan(rows, columns, outer * row_step, column_step, row_step, column_step, rows == samples and columns == features)


def _dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """The axes fill one block of memory, in any order."""
    expected = 1
    for step, size in sorted((s, n) for n, s in zip(shape, stride, strict=True) if n > 1):
        if step != expected:
            return False
        expected *= size
    return True


class _Rows:
    """A buffer of equally shaped samples; grows, and is used again on the next step."""

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        self.shape, self.device = (rows, columns), device
        self.views: list[Tensor] = []
        self.blocks: list[Tensor] = []
        self.used = 0

    def next(self) -> Tensor:
        if self.used == len(self.views):
            block = torch.empty(max(8, len(self.views)), *self.shape, device=self.device)
            self.blocks.append(block)
            self.views += block.unbind(0)
        self.used += 1
        return self.views[self.used - 1]

    def take(self) -> Tensor:
        """All samples of this step, (tensors, rows, columns); begins the next step."""
        if len(self.blocks) > 1:
            joined = torch.cat(self.blocks)
            self.blocks, self.views = [joined], list(joined.unbind(0))
        result = self.blocks[0][: self.used]
        self.used = 0
        return result


class _Place(NamedTuple):
    """Where the numbers of one tensor are."""

    group: tuple[int, int, torch.device]
    row: int
    elements: int
    exact: int                      # place of its sum of squares among the exact numbers, -1 for none
    extremes: bool                  # least and largest follow it
    total: float = math.nan         # the sum of squares itself where it cost nothing to read (`exact` is then -1)
    whole: bool = False             # the sample is the tensor


_Layout = tuple[Plan | None, tuple[int, int, torch.device], _Rows]


class Collector:
    """Gathers tensors during one step; `finish` returns their summaries in order of `put`."""

    def __init__(self, limit: int = 1024) -> None:
        self.limit = limit
        self.rotation = 0
        self._layouts: dict[tuple[tuple[int, ...], tuple[int, ...], torch.device], _Layout] = {}
        self._groups: dict[tuple[int, int, torch.device], _Rows] = {}
        self._places: list[_Place] = []
        self._exact: list[Tensor] = []
        self._also: list[tuple[Tensor, Callable[[Tensor], None]]] = []

    def put(self, value: Tensor) -> int:
        """Take statistics of `value` (any floating dtype, strided, not empty); returns the place of its summary.

        The norm is exact, and whether all is finite. Least and largest value are exact where that decides something (half precision, a square
        that is not finite) or costs little (not on a CPU); else they are the sample's.
        """
        if value.requires_grad:
            value = value.detach()
        layout = (value.shape, value.stride(), value.device)
        known = self._layouts.get(layout)
        if known is None:
            known = self._layouts[layout] = self._learn(*layout)
        plan, key, group = known
        if plan is None:
            return self.put(value.contiguous())
        place, row, turn = group.used, group.next(), self.rotation
        row.copy_(value.as_strided(group.shape, (plan.row_stride, plan.column_stride), value.storage_offset()
                                   + turn % plan.row_step * (plan.row_stride // plan.row_step) + turn % plan.column_step))
        if plan.whole:
            numbers = _Place(key, place, value.numel(), -1, False, math.nan, True)
        else:
            squares = square(value)
            total = squares.item() if at_hand(value) and value.dtype not in HALF else math.nan
            if math.isfinite(total):
                numbers = _Place(key, place, value.numel(), -1, False, total)
            else:
                self._exact += [squares, value.amin(), value.amax()]
                numbers = _Place(key, place, value.numel(), len(self._exact) - 3, True)
        self._places.append(numbers)
        return len(self._places) - 1

    def _learn(self, shape: tuple[int, ...], stride: tuple[int, ...], device: torch.device) -> _Layout:
        plan = plan_of(shape, stride, self.limit)
        key = (0, 0, device) if plan is None else (plan.rows, plan.columns, device)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Rows(*key)
        return plan, key, group

    def ask(self, numbers: Tensor, receive: Callable[[Tensor], None]) -> None:
        """Bring `numbers` to the host with the next `finish`."""
        self._also.append((numbers, receive))

    def finish(self) -> list[Summary]:
        """Summaries of everything put since the last call; forgets the tensors."""
        if not self._places and not self._also:
            return []
        keys = [key for key, group in self._groups.items() if group.used]
        tables = [_statistics(self._groups[key].take()) for key in keys]
        exact = [torch.stack([e if e.dtype == torch.float32 else e.float() for e in self._exact])] if _alike(self._exact) else self._exact
        host = to_host([*tables, *exact, *(numbers for numbers, _ in self._also)])
        rows = {key: table.tolist() for key, table in zip(keys, host, strict=False)}
        numbers = torch.cat([t.reshape(-1) for t in host[len(keys): len(keys) + len(exact)]]).tolist() if exact else []
        result = [_summary(place, rows[place.group][place.row], numbers) for place in self._places]
        for (_, receive), values in zip(self._also, host[len(keys) + len(exact):], strict=True):
            receive(values)
        self._places, self._exact, self._also = [], [], []
        if len(self._groups) > GROUPS:                             # shapes that change from batch to batch
            self._groups, self._layouts = {}, {}
        self.rotation += 1
        return result


def square(value: Tensor) -> Tensor:
    """Sum of squares of the whole tensor, in float32 at least; a dot product where the layout allows, 1.5 times faster than the norm."""
    if value.dtype == torch.float32 and value.is_contiguous():
        flat = value.view(-1)
        return torch.dot(flat, flat)
    return torch.linalg.vector_norm(value, dtype=torch.float64 if value.dtype == torch.float64 else torch.float32).square()


def at_hand(value: Tensor) -> bool:
    """Reading a number of it waits for nothing."""
    return value.device.type == "cpu"


def _alike(tensors: list[Tensor]) -> bool:
    return bool(tensors) and len({t.device for t in tensors}) == 1


def to_host(tensors: list[Tensor]) -> list[Tensor]:
    """The same numbers on the host as float32: one copy for each device they are on."""
    if all(at_hand(t) for t in tensors):
        return [t.float() for t in tensors]
    result: dict[int, Tensor] = {}
    for device in dict.fromkeys(t.device for t in tensors):
        chosen = [i for i, t in enumerate(tensors) if t.device == device]
        joined = torch.cat([tensors[i].reshape(-1).float() for i in chosen]).cpu()
        for i, part in zip(chosen, joined.split([tensors[i].numel() for i in chosen]), strict=True):
            result[i] = part.view(tensors[i].shape)
    return [result[i] for i in range(len(tensors))]


def _statistics(stacked: Tensor) -> Tensor:
    """mean, variance, zero share, variance over samples, least and largest of each sample; (tensors, 6).

    Centred sums instead of torch.var, and comparisons into floats: both many times faster on a CPU.
    """
    flat = stacked.flatten(1)
    mean = flat.mean(1)
    centred = (flat - mean.unsqueeze(1)).square_()
    variance = centred.mean(1)
    if stacked.shape[1] > 1:
        between = torch.sub(stacked, stacked.mean(dim=1, keepdim=True), out=centred.view(stacked.shape)).square_().flatten(1).mean(1)
    else:
        between = torch.full_like(mean, math.nan)
    zeros = torch.eq(flat, 0.0, out=centred).mean(1)
    return torch.stack([mean, variance, zeros, between, flat.amin(1), flat.amax(1)], dim=1)


def _summary(place: _Place, row: list[float], numbers: list[float]) -> Summary:
    mean, variance, zeros, between, low, high = row
    whole, count = place.whole, place.elements
    total = count * (variance + mean * mean) if whole else numbers[place.exact] if place.exact >= 0 else place.total
    mean_square = total / count if math.isfinite(total) else variance + mean * mean
    if place.extremes:
        low, high = numbers[place.exact + 1], numbers[place.exact + 2]
    finite = math.isfinite(low) and math.isfinite(high)
    return Summary(count=count, mean=mean, std=math.sqrt(variance) if variance >= 0 else math.nan,
                   rms=math.sqrt(mean_square) if mean_square >= 0 else math.nan, absmax=max(abs(low), abs(high)) if finite else math.inf,
                   norm=math.sqrt(total) if total >= 0 else math.nan, zero_fraction=zeros, sample_std=math.sqrt(between) if between >= 0 else math.nan,
                   minimum=low, maximum=high, finite=finite, sampled=not whole)
