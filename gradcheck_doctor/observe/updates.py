"""Gradients as backward left them, and what the optimizer made of them."""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor, nn

from gradcheck_doctor.observe.collector import HALF, to_host
from gradcheck_doctor.records.recording import ParameterStep

BLOCKS, BLOCK = 64, 16 # of each parameter that many elements are compared, in blocks that are each read at once
_BLOCKS = (BLOCKS, BLOCK)
SAMPLE = BLOCKS * BLOCK
SMALL = 4096           # elements of a gradient that is read as a whole
FEWEST = 64            # elements other than 0 that a sampled gradient must have


def local(tensor: Tensor) -> Tensor:
    """The part of a distributed tensor that is on this rank; any other tensor itself."""
    if type(tensor) is Tensor or type(tensor) is nn.Parameter or not hasattr(tensor, "to_local"):
        return tensor
    return tensor.to_local()  # type: ignore[no-any-return]


def same_values(a: Tensor, b: Tensor) -> bool:
    """Bitwise equal, as far as this rank holds them: comparing two distributed tensors would be a collective."""
    a, b = local(a.detach()), local(b.detach())
    return a.shape == b.shape and torch.equal(a, b)


def gradient_norms(parameters: Iterable[Tensor]) -> dict[int, float | None]:
    """L2 norm of each parameter's `.grad` by id (None without one), in one pass and one copy to the host."""
    result: dict[int, float | None] = {}
    keys: list[int] = []
    gradients: list[Tensor] = []
    for parameter in parameters:
        gradient = parameter.grad
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
        self._keys: tuple[int, ...] = ()                            # ids of the parameters, one for each row of the table
        self._table = torch.empty(0)                                # the samples of the last call
        self._rows: list[Tensor] = []
        self._sampled: dict[int, bool] = {}                         # by id of the parameter; False: its whole gradient is read

    def norms(self, parameters: Iterable[Tensor], full: bool) -> dict[int, float | None]:
        """As `gradient_norms`; with `full` also find out which gradients a sample says little of."""
        result: dict[int, float | None] = {}
        chosen: list[Tensor] = []
        views: list[Tensor] = []
        whole: list[Tensor] = []
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is None:
                result[id(parameter)] = None
                continue
            sampled = self._sampled.get(id(parameter))
            if sampled is None:
                sampled = self._sampled[id(parameter)] = _samples_well(gradient)
            if sampled and (count := gradient.numel()) > SMALL and gradient.is_contiguous():
                chosen.append(parameter)
                views.append((gradient.detach() if gradient.requires_grad else gradient).as_strided(_BLOCKS, (_spacing(count), 1)))
            else:
                whole.append(parameter)
        if views:
            norms, zeros = self._numbers(tuple(map(id, chosen)), views, full)
            for i, parameter in enumerate(chosen):
                if not math.isfinite(norms[i]) or norms[i] == 0.0 or zeros and zeros[i] > SAMPLE - FEWEST:
                    self._sampled[id(parameter)] = False
                    whole.append(parameter)
                else:
                    result[id(parameter)] = norms[i] * math.sqrt(parameter.numel() / SAMPLE)
        return result | gradient_norms(whole)

    def _numbers(self, keys: tuple[int, ...], views: list[Tensor], full: bool) -> tuple[list[float], list[float]]:
        """Norm and, if `full`, number of zeros of each view."""
        if keys != self._keys:
            self._keys, self._table = keys, torch.zeros(len(views), SAMPLE, device="cpu", dtype=torch.float32)
            self._rows = [row.view(v.shape) for row, v in zip(self._table.unbind(0), views, strict=True)]
        torch._foreach_copy_(self._rows, views)
        zeros = torch.eq(self._table, 0.0, out=torch.empty_like(self._table)).sum(1).tolist() if full else []
        return torch.linalg.vector_norm(self._table, dim=1).tolist(), zeros


def _stack(numbers: Iterable[Tensor]) -> Tensor:
    numbers = list(numbers)
    device = numbers[0].device
    return torch.stack([n if n.dtype == torch.float32 and n.device == device else n.to(device, torch.float32) for n in numbers])


def global_norm(norms: Iterable[float | None]) -> float | None:
    known = [n for n in norms if n is not None]
    return math.sqrt(sum(n * n for n in known)) if known else None


def left_over(parameter: Tensor) -> bool:
    """Whether a sample of the gradient holds anything but zeros."""
    return parameter.grad is not None and not parameter.grad.is_sparse and bool(_pick(parameter.grad).any())


def _samples_well(gradient: Tensor) -> bool:
    """Large, and of the usual kind: one that is 0 at nearly all elements (an embedding's) is found out when it is sampled."""
    return (type(gradient) is Tensor and gradient.layout is torch.strided and gradient.numel() > SMALL and gradient.dtype is torch.float32
            and gradient.is_cpu)


def _spacing(count: int) -> int:
    """From one block of a sample of `count` elements to the next: off round numbers, so that not every block begins in the same column."""
    return max(BLOCK, count // BLOCKS - BLOCK - 1)


def _pick(tensor: Tensor) -> Tensor:
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
        self._places: list[tuple[int, int]] = []
        self._kinds: list[_Kind] = []

    def before(self, parameters: Iterable[Tensor]) -> None:
        """Just before the optimizer's step."""
        chosen = [p for p in parameters if p.requires_grad and p.is_floating_point() and local(p).numel()]
        places = _where(chosen)
        if places != self._places:
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


class Rows(Sequence[ParameterStep]):
    """One parameter on its observed steps. A row is made when it is asked for: a training has many, and a report looks at few."""

    def __init__(self) -> None:
        self._items: list[Any] = []                                 # a row, or what it is made from

    def later(self, step: int, norm: float | None, scale: float, seen: tuple[list[float], int] | None) -> None:
        """Add the row of `step`: gradient norm to be divided by the loss `scale`, what `Updates` saw (None: the step did not change it)."""
        self._items.append((step, norm, scale, seen))

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> ParameterStep: ...
    @overload
    def __getitem__(self, index: slice) -> list[ParameterStep]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        found = self._items[index]
        if type(found) is tuple:
            found = self._items[index] = _row(*found)
        return found


def add_rows(rows: dict[int, Rows], step: int, norms: dict[int, float | None], scale: float, updates: dict[int, tuple[list[float], int]]) -> None:
    """Give every parameter with an update or a gradient its row of `step`."""
    for key, seen in updates.items():
        rows.setdefault(key, Rows()).later(step, norms.get(key), scale, seen)
    for key, norm in norms.items():
        if key not in updates:
            rows.setdefault(key, Rows()).later(step, norm, scale, None)


def _where(parameters: list[Tensor]) -> list[tuple[int, int]]:
    return [(id(p), local(p).data_ptr()) for p in parameters]


class _Kind:
    """Parameters of one device and one precision: tables with one row each, filled up with zeros."""

    def __init__(self, members: list[Tensor], device: torch.device, precision: torch.dtype) -> None:
        self.members, self.half = members, precision in HALF
        dtype = torch.float64 if precision == torch.float64 else torch.float32
        self.places = _where(members)
        self.views = [_pick(p) for p in members]
        sizes = [v.numel() for v in self.views]
        self.tables = torch.zeros(2, len(members), SAMPLE, device=device, dtype=dtype)
        self.old_rows, self.new_rows = [
            [row[:n].view(v.shape) for row, n, v in zip(table.unbind(0), sizes, self.views, strict=True)] for table in self.tables]
        self.roots = torch.tensor(sizes, device=device, dtype=dtype).sqrt()

    def compared(self) -> Tensor:
        """rms before, rms of the change and, in half precision, updates lost to rounding and updates wanted; (parameters, 2 or 4).

        An update is wanted where the gradient is not 0; without a usable gradient, where the value moved.
        """
        old, change = self.tables
        torch._foreach_copy_(self.new_rows, self.views if _where(self.members) == self.places else [_pick(p) for p in self.members])
        change -= old
        sizes = torch.linalg.vector_norm(self.tables, dim=2).div_(self.roots)                   # before, change
        if not self.half:
            return sizes.T
        gradient = torch.zeros_like(old)
        rows = [row[:v.numel()].view(v.shape) for row, v in zip(gradient.unbind(0), self.views, strict=True)]
        source = [_pick(p.grad) if p.grad is not None and not p.grad.is_sparse else moved for p, moved in zip(self.members, self.new_rows, strict=True)]
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
