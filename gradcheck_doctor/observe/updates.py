"""Gradients as backward left them, and what the optimizer made of them."""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from gradcheck_doctor.observe.collector import HALF, to_host
from gradcheck_doctor.records.lazy import Lazy
from gradcheck_doctor.records.recording import ParameterStep

BLOCKS, BLOCK = 64, 16 # of each parameter that many elements are compared, in blocks that are each read at once
_BLOCKS = (BLOCKS, BLOCK)
SAMPLE = BLOCKS * BLOCK
SMALL = 4096           # elements of a gradient that is read as a whole
FEWEST = 64            # elements other than 0 that the sample of a gradient must have
FEWEST_EVERY = 8       # times that norms are taken, the first among them, these are counted once


def local(tensor: Tensor) -> Tensor:
    """The part of a distributed tensor that is on this rank; any other tensor itself."""
    if type(tensor) is Tensor or type(tensor) is nn.Parameter or not hasattr(tensor, "to_local"):
        return tensor
    return tensor.to_local()  # type: ignore[no-any-return]


def same_values(a: Tensor, b: Tensor) -> bool:
    """Bitwise equal, as far as this rank holds them: comparing two distributed tensors would be a collective."""
    a, b = local(a.detach()), local(b.detach())
    return a.shape == b.shape and torch.equal(a, b)


def gradient_norms(parameters: Iterable[Tensor], given: Mapping[int, Tensor] | None = None) -> dict[int, float | None]:
    """L2 norm of each parameter's gradient by id (None without one), in one pass and one copy to the host: of `.grad`, or of those `given` by id."""
    result: dict[int, float | None] = {}
    keys: list[int] = []
    gradients: list[Tensor] = []
    for parameter in parameters:
        gradient = given.get(id(parameter)) if given else parameter.grad
        result[id(parameter)] = None
        if gradient is None:
            continue
        gradient = local(gradient.detach() if gradient.requires_grad else gradient)
        if gradient.is_sparse:
            gradient = gradient.coalesce().values()
        if not gradient.numel():
            result[id(parameter)] = 0.0                             # a gradient, but no element of it on this rank
        else:
            keys.append(id(parameter))
            gradients.append(gradient if gradient.dtype in (torch.float32, torch.float64) else gradient.float())
    if keys:
        numbers = to_host([_stack(torch._foreach_norm(gradients))])[0].tolist()
        result |= zip(keys, numbers, strict=True)
    return result


class GradientSample:
    """Norms of gradients from `SAMPLE` elements of each, all at once; of the whole gradient where it is small, or where a sample says little."""

    def __init__(self) -> None:
        self._ways: dict[int, tuple[int, float]] = {}               # by id of the parameter: see `_way`
        self._times = 0

    def norms(self, parameters: Iterable[Tensor]) -> dict[int, float | None]:
        """As `gradient_norms`; now and then also find out which gradients a sample says little of."""
        thorough = self._times % FEWEST_EVERY == 0
        self._times += 1
        result: dict[int, float | None] = {}
        chosen: list[Tensor] = []
        values: list[Tensor] = []
        others: list[Tensor] = []
        ways = self._ways
        grad_enabled = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            for parameter in parameters:
                gradient = parameter.grad
                if gradient is None:
                    result[id(parameter)] = None
                    continue
                way = ways.get(id(parameter))
                if way is None:
                    way = ways[id(parameter)] = _way(gradient)
                if way[0] < 0 or way[0] and not gradient.is_contiguous():
                    others.append(parameter)
                else:
                    chosen.append(parameter)
                    values.append(gradient.as_strided(_BLOCKS, (way[0], 1)) if way[0] else gradient)
            if values:
                numbers = torch.stack(torch._foreach_norm(values)).tolist()
                if thorough:
                    few = torch.stack([v.count_nonzero() for v in values]).lt_(FEWEST).tolist()
                for place, (parameter, number) in enumerate(zip(chosen, numbers, strict=True)):
                    factor = ways[id(parameter)][1]
                    if factor != 1.0 and (number == 0.0 or not math.isfinite(number) or thorough and few[place]):
                        ways[id(parameter)] = _WHOLE
                        others.append(parameter)
                    else:
                        result[id(parameter)] = number * factor
            return result | gradient_norms(others) if others else result
        finally:
            torch._C._set_grad_enabled(grad_enabled)


_WHOLE, _APART = (0, 1.0), (-1, 1.0)


def _way(gradient: Tensor) -> tuple[int, float]:
    """How the norm of such gradients is found: (from one block of the sample to the next, by what the sample's norm is multiplied).

    `_WHOLE` where all of it is read with the samples of the others, `_APART` where it is of another kind than these.
    """
    if type(gradient) is not Tensor or gradient.layout is not torch.strided or gradient.dtype is not torch.float32 or not gradient.is_cpu:
        return _APART
    count = gradient.numel()
    return (_spacing(count), math.sqrt(count / SAMPLE)) if count > SMALL else _WHOLE


def _stack(numbers: Iterable[Tensor]) -> Tensor:
    numbers = list(numbers)
    device = numbers[0].device
    return torch.stack([n if n.dtype == torch.float32 and n.device == device else n.to(device, torch.float32) for n in numbers])


def global_norm(norms: Iterable[float | None]) -> float | None:
    known = [n for n in norms if n is not None]
    return math.sqrt(sum(n * n for n in known)) if known else None


def left_over(parameter: Tensor) -> bool:
    """Whether a sample of the gradient holds anything but zeros."""
    gradient = parameter.grad
    return gradient is not None and not gradient.is_sparse and bool(sample(gradient).any())


def any_gradient(parameter: Tensor) -> bool:
    """Whether there is a gradient with anything but zeros in it."""
    gradient = parameter.grad
    if gradient is None:
        return False
    gradient = local(gradient.detach())
    return bool((gradient.coalesce().values() if gradient.is_sparse else gradient).any())


def _spacing(count: int) -> int:
    """From one block of a sample of `count` elements to the next: off round numbers, so that not every block begins in the same column."""
    return max(BLOCK, count // BLOCKS - BLOCK - 1)


def sample(tensor: Tensor) -> Tensor:
    """At most `SAMPLE` elements, in evenly spaced blocks that lie in one line of cache each; a view where the layout allows."""
    value = local(tensor.detach() if tensor.requires_grad else tensor)
    count = value.numel()
    if count > SAMPLE and value.is_contiguous():
        return value.as_strided(_BLOCKS, (_spacing(count), 1))
    flat = value.reshape(-1)
    return flat[:: count // SAMPLE][:SAMPLE] if count > SAMPLE else flat


class Updates:
    """Samples of an optimizer's parameters before a step, compared with the same elements after it: all parameters of one kind at once.

    Views into the parameters and the tables are kept from step to step, for as long as the parameters stay where they are.
    """

    def __init__(self) -> None:
        self._places: list[int] = []
        self._kinds: list[_Kind] = []

    def before(self, parameters: Iterable[Tensor]) -> None:
        """Just before the optimizer's step."""
        chosen = [p for p in parameters if p.requires_grad]
        places = _where(chosen)
        if places != self._places:
            chosen = [p for p in chosen if p.is_floating_point() and local(p).numel()]
            kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
            for parameter in chosen:
                kinds.setdefault((parameter.device, parameter.dtype), []).append(parameter)
            self._places, self._kinds = places, [_Kind(members, *kind) for kind, members in kinds.items()]
        for kind in self._kinds:
            torch._foreach_copy_(kind.old_rows, kind.views)

    def finish(self) -> dict[int, tuple[list[float], int]]:
        """What was seen of each parameter, by its id: ([rms before, rms of the change; in half precision also updates lost to rounding
        and updates wanted], number of elements)."""
        if not self._kinds:
            return {}
        rows = [row for table in to_host([kind.compared() for kind in self._kinds]) for row in table.tolist()]
        seen = [p for kind in self._kinds for p in kind.members]
        return {id(p): (row, p.numel()) for p, row in zip(seen, rows, strict=True)}


def rows() -> Lazy[ParameterStep]:
    """Of one parameter on its observed steps."""
    return Lazy(_row)


def add_rows(found: dict[int, Lazy[ParameterStep]], step: int, norms: dict[int, float | None], scale: float,
             updates: dict[int, tuple[list[float], int]]) -> None:
    """Give every parameter with an update or a gradient its row of `step`: gradient norm to be divided by the loss `scale`, and what `Updates` saw."""
    for key in {**updates, **norms}:
        held = found.get(key)
        if held is None:
            held = found[key] = rows()
        held.add(step, norms.get(key), scale, updates.get(key))


def _where(parameters: list[Tensor]) -> list[int]:
    """Of each parameter its id and where its elements are."""
    return [place for p in parameters for place in (id(p), p.data_ptr() if type(p) is nn.Parameter else local(p).data_ptr())]


class _Kind:
    """Parameters of one device and one precision: tables with one row each, filled up with zeros."""

    def __init__(self, members: list[Tensor], device: torch.device, precision: torch.dtype) -> None:
        self.members, self.half = members, precision in HALF
        dtype = torch.float64 if precision == torch.float64 else torch.float32
        self.places = _where(members)
        self.views = [sample(p) for p in members]
        sizes = [v.numel() for v in self.views]
        self.tables = torch.zeros(2, len(members), SAMPLE, device=device, dtype=dtype)
        self.old, self.change = self.tables.unbind(0)
        self.old_rows, self.new_rows = [
            [row[:n].view(v.shape) for row, n, v in zip(table.unbind(0), sizes, self.views, strict=True)] for table in self.tables]
        self.roots = torch.tensor(sizes, device=device, dtype=dtype).sqrt()

    def compared(self) -> Tensor:
        """rms before, rms of the change and, in half precision, updates lost to rounding and updates wanted; (parameters, 2 or 4).

        An update is wanted where the gradient is not 0; without a usable gradient, where the value moved.
        """
        old, change = self.old, self.change
        torch._foreach_copy_(self.new_rows, self.views if _where(self.members) == self.places else [sample(p) for p in self.members])
        change -= old
        sizes = torch.linalg.vector_norm(self.tables, dim=2).div_(self.roots)                   # before, change
        if not self.half:
            return sizes.T
        gradient = torch.zeros_like(old)
        rows = [row[:v.numel()].view(v.shape) for row, v in zip(gradient.unbind(0), self.views, strict=True)]
        source = [sample(p.grad) if p.grad is not None and not p.grad.is_sparse else moved for p, moved in zip(self.members, self.new_rows, strict=True)]
        torch._foreach_copy_(rows, [g if g.shape == moved.shape else moved for g, moved in zip(source, self.new_rows, strict=True)])
        active = gradient.ne_(0.0)
        wanted = active.sum(1)
        made = active.mul_(change.ne_(0.0)).sum(1)                  # in place: what fills the rows up stays 0
        return torch.stack([*sizes, wanted - made, wanted], dim=1)


def _row(step: int, norm: float | None, scale: float, seen: tuple[list[float], int] | None) -> ParameterStep:
    row = gradient_row(step, norm, scale)
    if seen is None:
        return row
    (size, change, *counts), count = seen
    lost, wanted = counts or (0.0, 0.0)
    ratio = change / size if size > 0 and change >= 0 else (math.inf if change > 0 else 0.0)
    return replace(row, update_ratio=ratio, weight_norm=size * math.sqrt(count), lost=lost / wanted if wanted else None)


def gradient_row(step: int, norm: float | None, scale: float) -> ParameterStep:
    """What is known of a parameter on a step that did not change it."""
    return ParameterStep(step, None if norm is None else norm / scale, zero_gradient=norm == 0.0, finite=norm is None or math.isfinite(norm))
