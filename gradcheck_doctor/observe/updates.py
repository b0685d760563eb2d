"""Gradients as backward left them, and what the optimizer made of them."""
from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from gradcheck_doctor.records.recording import ParameterStep

SAMPLE = 4096


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
    present: list[tuple[int, Tensor]] = []
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
            present.append((id(parameter), gradient if gradient.dtype in (torch.float32, torch.float64) else gradient.float()))
    if present:
        norms = torch.stack([n.float().cpu() for n in torch._foreach_norm([g for _, g in present])]).tolist()
        result |= {key: norm for (key, _), norm in zip(present, norms, strict=True)}
    return result


def global_norm(norms: Iterable[float | None]) -> float | None:
    known = [n for n in norms if n is not None]
    return math.sqrt(sum(n * n for n in known)) if known else None


def _pick(tensor: Tensor) -> Tensor:
    flat = local(tensor.detach()).reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE]


class Updates:
    """Samples of the parameters before a step, compared with the same elements after it."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.before = [(p, _pick(p).clone()) for p in parameters if p.requires_grad and p.is_floating_point() and local(p).numel()]

    def finish(self, step: int, norms: dict[int, float | None], scale: float) -> dict[int, ParameterStep]:
        """One `ParameterStep` for each parameter; gradients divided by the loss `scale`."""
        rows, seen = [], []
        for parameter, old in self.before:
            new = _pick(parameter)
            moved = new != old
            gradient = _pick(parameter.grad) if parameter.grad is not None and not parameter.grad.is_sparse else None
            wanted = gradient != 0 if gradient is not None and gradient.shape == old.shape else moved
            difference = (new.double() - old.double())
            rows.append(torch.stack([difference.square().mean(), old.double().square().mean(), (wanted & ~moved).double().sum(),
                                     wanted.double().sum()]).cpu())
            seen.append(parameter)
        if not rows:
            return {}
        numbers = torch.stack(rows).tolist()
        return {id(p): _step(step, norms.get(id(p)), scale, row, p.numel()) for p, row in zip(seen, numbers, strict=True)}


def _step(step: int, norm: float | None, scale: float, row: list[float], count: int) -> ParameterStep:
    change, square, lost, wanted = row
    ratio = math.sqrt(change / square) if square > 0 and change >= 0 else (math.inf if change > 0 else 0.0)
    return ParameterStep(step=step, grad_norm=None if norm is None else norm / scale, update_ratio=ratio,
                         weight_norm=math.sqrt(square * count) if square >= 0 else math.nan, lost=lost / wanted if wanted else None,
                         zero_gradient=norm == 0.0, finite=norm is None or math.isfinite(norm))
