"""Gradients as backward left them, and what the optimizer made of them."""
from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from gradcheck_doctor.observe.collector import to_host
from gradcheck_doctor.records.recording import ParameterStep

SAMPLE = 1024          # elements compared of each parameter


def local(tensor: Tensor) -> Tensor:
    """The part of a distributed tensor that is on this rank; any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[no-any-return]


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
        gradient = local(gradient.detach())
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


def _pick(tensor: Tensor) -> Tensor:
    """At most `SAMPLE` evenly spaced elements, a view where the layout allows."""
    value = local(tensor.detach())
    count = value.numel()
    if count > SAMPLE and value.is_contiguous():
        return value.as_strided((SAMPLE,), (count // SAMPLE,))
    flat = value.reshape(-1)
    return flat[:: count // SAMPLE][:SAMPLE] if count > SAMPLE else flat


class Updates:
    """Samples of the parameters before a step, compared with the same elements after it: all parameters of one kind at once."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._groups: dict[tuple[torch.device, bool], tuple[list[Tensor], list[Tensor], Tensor]] = {}
        kinds: dict[tuple[torch.device, bool], list[Tensor]] = {}
        for parameter in parameters:
            if parameter.requires_grad and parameter.is_floating_point() and local(parameter).numel():
                kinds.setdefault((parameter.device, parameter.dtype == torch.float64), []).append(parameter)
        for kind, members in kinds.items():
            views = [_pick(p) for p in members]
            self._groups[kind] = members, views, _table(views, kind)

    def finish(self, step: int, norms: dict[int, float | None], scale: float) -> dict[int, ParameterStep]:
        """One `ParameterStep` for each parameter; gradients divided by the loss `scale`."""
        tables = [_compared(members, before, kind) for kind, (members, _, before) in self._groups.items()]
        rows = [row for table in to_host(tables) for row in table.tolist()] if tables else []
        seen = [p for members, _, _ in self._groups.values() for p in members]
        return {id(p): _step(step, norms.get(id(p)), scale, row, p.numel()) for p, row in zip(seen, rows, strict=True)}


def _table(views: list[Tensor], kind: tuple[torch.device, bool]) -> Tensor:
    """One row a parameter, filled up with zeros: (parameters, SAMPLE)."""
    device, double = kind
    table = torch.zeros(len(views), SAMPLE, device=device, dtype=torch.float64 if double else torch.float32)
    torch._foreach_copy_([row if v.numel() == SAMPLE else row[: v.numel()] for row, v in zip(table.unbind(0), views, strict=True)], views)
    return table


def _compared(members: list[Tensor], before: Tensor, kind: tuple[torch.device, bool]) -> Tensor:
    """Mean square of the change, mean square before, updates lost to rounding, updates wanted; (parameters, 4).

    An update is wanted where the gradient is not 0; without a usable gradient, where the value moved.
    """
    views = [_pick(p) for p in members]
    after = _table(views, kind)
    gradients = [_pick(p.grad) if p.grad is not None and not p.grad.is_sparse else None for p in members]
    usable = [g is not None and g.shape == v.shape for g, v in zip(gradients, views, strict=True)]
    change = after - before
    wanted = _table([g if ok and g is not None else row[: v.numel()] for g, ok, row, v in
                     zip(gradients, usable, change.unbind(0), views, strict=True)], kind)
    count = torch.tensor([float(v.numel()) for v in views], device=before.device, dtype=before.dtype)
    still = torch.eq(change, 0.0, out=torch.empty_like(change))
    active = torch.ne(wanted, 0.0, out=torch.empty_like(change))
    return torch.stack([change.square().sum(1) / count, before.square().sum(1) / count, (still * active).sum(1), active.sum(1)], dim=1)


def _step(step: int, norm: float | None, scale: float, row: list[float], count: int) -> ParameterStep:
    change, square, lost, wanted = row
    ratio = math.sqrt(change / square) if square > 0 and change >= 0 else (math.inf if change > 0 else 0.0)
    return ParameterStep(step=step, grad_norm=None if norm is None else norm / scale, update_ratio=ratio,
                         weight_norm=math.sqrt(square * count) if square >= 0 else math.nan, lost=lost / wanted if wanted else None,
                         zero_gradient=norm == 0.0, finite=norm is None or math.isfinite(norm))
