"""Statistics of many tensors at once: each gives a small sample and, where asked, exact reductions; everything else is computed together at the end.

A sample is one `take` into a row of a buffer that is kept from step to step. No tensor outlives its step, and one copy brings all numbers
to the host. `min`, `max`, `sum` and `dot` run near memory speed on a CPU; `aminmax`, `var` and comparisons of whole tensors do not.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradcheck_doctor.records.summaries import Summary

ROWS = 64          # samples (axis 0) looked at for statistics that need them, at most
BLOCK = 4          # elements side by side in a sample, at most
TOGETHER = 4       # steps whose numbers are computed together: as many values as such a number of the largest steps has,
STEPS = 12         # and at most these
GROUPS = 256       # buffers of different shape kept from step to step, at most
HALF = (torch.float16, torch.bfloat16)


class Plan(NamedTuple):
    """How to sample tensors of one shape: `rows` samples x `columns` features, evenly spaced, offsets turned within the steps."""

    rows: int
    columns: int
    features: int
    row_step: int
    column_step: int                # from one block of features to the next
    block: int                      # features side by side in a block: they come with one line of cache
    whole: bool                     # the sample is the tensor

    def offset(self, turn: int) -> int:
        """By how much all elements move on at rotation `turn`."""
        spread = turn * 2_654_435_761 >> 7                          # in step with nothing, whichever turns are asked for
        return spread % self.row_step * self.features + spread // self.row_step % (self.column_step - self.block + 1)


def plan_of(shape: tuple[int, ...], limit: int) -> Plan:
    """At most `limit` elements as a matrix (samples, features); axis 0 is the batch for every layout but the time-first one, where it is time.

    Features side by side are different units in a matrix or a sequence, but neighbours of one picture in an image: there no blocks are taken.
    """
    samples = shape[0] if shape else 1
    features = math.prod(shape[1:])
    row_step = samples // ROWS if samples * features > limit and samples > ROWS else 1
    rows = min(samples, ROWS) if row_step > 1 or samples * features > limit else samples
    wanted = max(1, limit // rows)
    if features <= wanted:
        return Plan(rows, features, features, row_step, features, features, rows == samples)
    block = math.gcd(BLOCK, wanted) if len(shape) in (2, 3) else 1
    blocks = wanted // block
    column_step = features // blocks
    if column_step > block and column_step % 2 == 0:
        column_step -= 1                                            # in step with no power of two
    return Plan(rows, wanted, features, row_step, column_step, block, False)


class _Rows:
    """A buffer of equally shaped samples; grows, and is used again on the next step."""

    def __init__(self, number: int, rows: int, columns: int, device: torch.device) -> None:
        self.number, self.shape, self.device = number, (rows, columns), device
        self.views: list[Tensor] = []
        self.blocks: list[Tensor] = []
        self.used = 0

    def next(self) -> Tensor:
        if self.used == len(self.views):
            block = torch.empty(max(8, len(self.views) // 8), *self.shape, device=self.device, dtype=torch.float32)
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


class Layout:
    """Which elements of a tensor of one shape are taken, and where they go."""

    __slots__ = ("facts", "first", "group", "index", "plan", "shape", "turn")

    def __init__(self, shape: torch.Size, plan: Plan, group: _Rows) -> None:
        self.shape: torch.Size | None = shape                      # None: not to be used any more
        self.plan, self.group = plan, group
        self.facts = (group.number, shape.numel(), plan.whole)
        rows = torch.arange(plan.rows, device=group.device) * (plan.row_step * plan.features)
        place = torch.arange(plan.columns, device=group.device)
        block = max(1, plan.block)
        self.first = rows.unsqueeze(1) + (place // block * plan.column_step + place % block)
        self.index, self.turn = self.first.clone(), 0

    def to(self, turn: int) -> None:
        """Make `index` the positions in the flattened tensor at rotation `turn`."""
        if not self.plan.whole:
            torch.add(self.first, self.plan.offset(turn), out=self.index)
        self.turn = turn


#: Where the numbers of one tensor are: ((number of its buffer, elements, the sample is the tensor), row, place of its sum of squares among the
#: exact numbers or -1 (least and largest follow it), the sum of squares itself where it cost nothing to read, nan where the sample says it, the batch).
_Place = tuple[tuple[int, int, bool], int, int, float, "_Batch"]


class Cell:
    """A value that comes on each step: where its sample goes this time. All are prepared at once, so that little is left to do when the value comes,
    with caches that a large product has just emptied."""

    __slots__ = ("count", "index", "layout", "place", "row", "series")

    def __init__(self, series: Any) -> None:
        self.series = series                    # where its summaries are kept
        self.layout: Layout | None = None       # None: each time it is looked up how to sample it
        self.count = -1                         # elements
        self.index: Any = None
        self.row: Tensor | None = None          # None: not prepared, or taken already
        self.place = -1                         # of its summary on this step, -1: not prepared

    def learn(self, layout: Layout, value: Tensor) -> None:
        """`value` is like those that will come."""
        self.layout = layout if value.dtype is torch.float32 else None
        self.count, self.index = value.numel(), layout.index

    def taken(self, value: Tensor, row: Tensor, exact: Collector | None) -> bool:
        """Take the sample of `value` into the row that was prepared, and let `exact` read the rest; False when it is not like those before."""
        if value.numel() != self.count:
            return False
        try:
            torch.take(value, self.index, out=row)
        except RuntimeError:                    # on another device, of another kind
            return False
        self.row = None
        if exact is not None:
            exact.complete(self, value)
        return True


class _Batch:
    """The numbers of a few steps: computed together, at the latest when one of them is asked for."""

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self.rows: dict[int, list[list[float]]] = {}
        self.exact: list[float] = []
        self.ready = False


class Sheet:
    """The tensors of one step; a summary is made when it is asked for."""

    def __init__(self, places: list[_Place]) -> None:
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Summary:
        place = self._places[index]
        batch = place[4]
        if not batch.ready:
            batch.collector.flush()
        return _summary(place, batch.rows[place[0][0]][place[1]], batch.exact)

    def __iter__(self) -> Iterator[Summary]:
        return (self[i] for i in range(len(self)))


class Collector:
    """Gathers tensors during one step; `finish` returns their summaries in order of `put`."""

    def __init__(self, limit: int = 1024) -> None:
        self.limit = limit
        self.rotation = 0
        self._layouts: dict[tuple[torch.Size, torch.device], Layout] = {}
        self._groups: dict[tuple[int, int, torch.device], _Rows] = {}
        self._places: list[_Place] = []
        self._exact: list[Tensor] = []
        self._also: list[tuple[Tensor, Callable[[Tensor], None]]] = []
        self._batch = _Batch(self)
        self._cells: list[Cell] = []    # prepared for this step
        self._waiting = self._rows = 0  # steps whose numbers are not computed yet, and their values
        self._most = 0                  # values of the largest step

    def layout(self, value: Tensor) -> Layout:
        """How tensors of this shape are sampled. Whoever sees the like of `value` again may keep it for `put`."""
        key = (value.shape, value.device)
        known = self._layouts.get(key)
        if known is None:
            plan = plan_of(value.shape, self.limit)
            kind = (plan.rows, plan.columns, value.device)
            group = self._groups.get(kind)
            if group is None:
                group = self._groups[kind] = _Rows(len(self._groups), *kind)
            known = self._layouts[key] = Layout(value.shape, plan, group)
        return known

    def _room(self, layout: Layout) -> tuple[Tensor, int]:
        """The next row for a sample of that kind, and its number; `layout.index` is that of this step."""
        if layout.turn != self.rotation:
            layout.to(self.rotation)
        return layout.group.next(), layout.group.used - 1

    def put(self, value: Tensor, exact: bool = True, layout: Layout | None = None) -> int:
        """Take statistics of `value` (any floating dtype, strided, not empty, no gradient); returns the place of its summary.

        With `exact`, the norm is that of the whole tensor, and so is the word on whether all is finite. Least and largest value are exact
        where that decides something (half precision, a square that is not finite) or costs little (not on a CPU); else they are the sample's.
        Without it all comes from the sample, but for the extremes of float16. `layout` is that of the value's shape and device.
        """
        if layout is None:
            layout = self.layout(value)
        row, number = self._room(layout)
        dtype = value.dtype
        if dtype is torch.float32:
            torch.take(value, layout.index, out=row)
        else:
            row.copy_(torch.take(value, layout.index))
        place, total = self._read(value) if (exact or dtype is torch.float16) and not layout.plan.whole else (-1, math.nan)
        self._places.append((layout.facts, number, place, total, self._batch))
        return len(self._places) - 1

    def _read(self, value: Tensor) -> tuple[int, float]:
        """The whole tensor: (place of its exact numbers or -1, sum of squares or nan), see `_Place`."""
        squares = square(value)
        if at_hand(value) and value.dtype not in HALF and math.isfinite(total := squares.item()):
            return -1, total
        self._exact += [squares, value.amin(), value.amax()]
        return len(self._exact) - 3, math.nan

    def complete(self, cell: Cell, value: Tensor) -> None:
        """Read all of a value whose sample was taken into a prepared row."""
        facts, number, _, _, batch = self._places[cell.place]
        if not facts[2]:
            self._places[cell.place] = (facts, number, *self._read(value), batch)

    def prepare(self, cells: list[Cell]) -> None:
        """Make room for the samples of these values; whoever meets one takes it into `row` at `index`, and makes `row` None."""
        places, batch = self._places, self._batch
        for cell in cells:
            layout = cell.layout
            if layout is not None and layout.shape is not None:
                cell.row, number = self._room(layout)
                cell.place = len(places)
                places.append((layout.facts, number, -1, math.nan, batch))
        self._cells = cells

    def withdraw(self) -> None:
        """Prepared values that have not come will not be taken any more."""
        for cell in self._cells:
            if cell.row is not None:
                cell.row, cell.place = None, -1

    def ask(self, numbers: Tensor, receive: Callable[[Tensor], None]) -> None:
        """Bring `numbers` to the host with the rest of the step."""
        self._also.append((numbers, receive))

    def finish(self, later: bool = False) -> Sheet:
        """Everything put since the last call; forgets the tensors. With `later` the numbers may wait for those of the next steps."""
        self.withdraw()
        sheet = Sheet(self._places)
        self._places = []
        self._waiting += 1
        self._rows += len(sheet)
        self._most = max(self._most, len(sheet))
        self.rotation += 1
        if not later or self._waiting >= STEPS or self._rows > (TOGETHER - 1) * self._most or len(self._layouts) > GROUPS:
            self.flush()
        elif self._also and all(at_hand(numbers) for numbers, _ in self._also):
            self._hand_out(to_host([numbers for numbers, _ in self._also]))
        return sheet

    def flush(self) -> None:
        """Compute what waits, and bring it to the host in one copy. In the middle of a step, too, where our own mode may be on."""
        self.withdraw()
        groups = [group for group in self._groups.values() if group.used]
        if groups or self._also:
            with torch._C.DisableTorchFunction():
                tables = _statistics([group.take() for group in groups])
                exact = [torch.stack([e if e.dtype == torch.float32 else e.float() for e in self._exact])] if _alike(self._exact) else self._exact
                host = to_host([*tables, *exact, *(numbers for numbers, _ in self._also)])
                self._batch.rows = {group.number: table.tolist() for group, table in zip(groups, host, strict=False)}
                self._batch.exact = torch.cat([t.reshape(-1) for t in host[len(groups): len(groups) + len(exact)]]).tolist() if exact else []
                self._hand_out(host[len(groups) + len(exact):])
        self._batch.ready = True
        self._batch, self._exact, self._waiting, self._rows = _Batch(self), [], 0, 0
        if len(self._layouts) > GROUPS:                            # shapes that change from batch to batch
            for layout in self._layouts.values():
                layout.shape = None
            self._groups, self._layouts = {}, {}

    def _hand_out(self, host: list[Tensor]) -> None:
        waiting, self._also = self._also, []
        for (_, receive), values in zip(waiting, host, strict=True):
            receive(values)


def square(value: Tensor) -> Tensor:
    """Sum of squares of the whole tensor, in float32 at least; a dot product where the layout allows, 1.5 times faster than the norm."""
    if value.dtype == torch.float32 and value.is_contiguous():
        flat = value.view(-1)
        return torch.dot(flat, flat)
    return torch.linalg.vector_norm(value, dtype=torch.float64 if value.dtype == torch.float64 else torch.float32).square()


def at_hand(value: Tensor) -> bool:
    """Reading a number of it waits for nothing."""
    return value.is_cpu


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


def _statistics(stacks: list[Tensor]) -> list[Tensor]:
    """mean, variance, zero share, variance over samples, least and largest of each sample; (tensors, 6) for each stack of equally shaped samples.

    A sample of one number gives that number six times: `_summary` knows the rest. Samples of one size go together, however they are shaped: with
    tables this small it is the number of operations that counts.
    """
    kinds: dict[tuple[torch.device, int], list[int]] = {}
    for i, stack in enumerate(stacks):
        kinds.setdefault((stack.device, stack[0].numel()), []).append(i)
    tables: list[Tensor] = [torch.empty(0)] * len(stacks)
    for (_, size), members in kinds.items():
        counts = [len(stacks[i]) for i in members]
        flat = torch.cat([stacks[i].flatten(1) for i in members]) if len(members) > 1 else stacks[members[0]].flatten(1)
        numbers = _of_samples(flat) if size > 1 else flat.expand(-1, 6)
        for i, part in zip(members, numbers.split(counts), strict=True):
            if stacks[i].shape[1] > 1:
                part[:, 3] = _between(stacks[i])
            tables[i] = part
    return tables


def _of_samples(flat: Tensor) -> Tensor:
    """Centred sums instead of torch.var, and comparisons into floats: both many times faster on a CPU."""
    mean = flat.mean(1)
    work = torch.sub(flat, mean.unsqueeze(1))
    variance = work.square_().mean(1)
    zeros = torch.eq(flat, 0.0, out=work).mean(1)
    return torch.stack([mean, variance, zeros, torch.full_like(mean, math.nan), flat.amin(1), flat.amax(1)], dim=1)


def _between(stack: Tensor) -> Tensor:
    """Mean over the features of the variance over the samples; stack is (tensors, samples, features)."""
    return torch.sub(stack, stack.mean(dim=1, keepdim=True)).square_().flatten(1).mean(1)


def _summary(place: _Place, row: list[float], numbers: list[float]) -> Summary:
    mean, variance, zeros, between, low, high = row
    (_, count, whole), _, exact, total, _ = place
    if count == 1:
        variance, zeros, between = 0.0, float(mean == 0.0), math.nan
    if exact >= 0:
        total, low, high = numbers[exact: exact + 3]
    mean_square = total / count if math.isfinite(total) else variance + mean * mean
    if math.isnan(total) and exact < 0:
        total = count * mean_square                                # all there is, or what the sample says
    finite = math.isfinite(low) and math.isfinite(high)
    return Summary(count=count, mean=mean, std=math.sqrt(variance) if variance >= 0 else math.nan,
                   rms=math.sqrt(mean_square) if mean_square >= 0 else math.nan, absmax=max(abs(low), abs(high)) if finite else math.inf,
                   norm=math.sqrt(total) if total >= 0 else math.nan, zero_fraction=zeros, sample_std=math.sqrt(between) if between >= 0 else math.nan,
                   minimum=low, maximum=high, finite=finite, sampled=not whole)
