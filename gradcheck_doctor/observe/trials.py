"""Trials on a throw-away state of a model: can it learn one batch by heart, and does it answer the same in eval mode?"""
from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from gradcheck_doctor.errors import ProbeError
from gradcheck_doctor.observe.untouched import same_randomness, untouched

STEPS = 300
RATES = (1e-3, 1e-2, 1e-4)         # Adam's, tried in this order where no optimizer is given
ENOUGH = 0.05                      # of the first loss: no more steps are needed
LAST = 10                          # losses of which the least counts


def adam(model: nn.Module, rate: float = 1e-3) -> torch.optim.Adam:
    """Adam for throw-away steps; the sparse gradients of an embedding, which it refuses, are made dense for it."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], rate)
    optimizer.register_step_pre_hook(_dense)
    return optimizer


def _dense(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()


def overfit(model: nn.Module, compute_loss: Callable[[nn.Module], Tensor], *, make_optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
            seed: int = 0, steps: int = STEPS) -> dict[str, Any]:
    """Train on the one batch until the loss is 5 % of its start, at most `steps` steps; the model comes back as it was.

    Dropout layers are off. Without `make_optimizer` Adam is used, with the next learning rate where one fails.

    Returns:
        first, last (the least of the final ten losses), share = last / first, steps, rates tried, and falling: the loss still fell at the end.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise ProbeError("--overfit needs trainable parameters: all are frozen. Unfreeze what is to be trained.")
    best: dict[str, Any] = {}
    tried: list[float] = []
    for rate in RATES if make_optimizer is None else (math.nan,):
        tried.append(rate)
        with untouched(model), torch.enable_grad():
            torch.manual_seed(seed)
            optimizer = make_optimizer(model) if make_optimizer is not None else adam(model, rate)
            losses = list(_losses(model, compute_loss, optimizer, steps))
        found = _judged(losses)
        if not best or found["share"] < best["share"]:
            best = found
        if best["share"] <= ENOUGH:
            break
    return {**best, "rates": [r for r in tried if not math.isnan(r)]}


def _losses(model: nn.Module, compute_loss: Callable[[nn.Module], Tensor], optimizer: torch.optim.Optimizer, steps: int) -> Iterator[float]:
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    first: float | None = None
    for _ in range(steps):
        optimizer.zero_grad()
        loss = compute_loss(model)
        yield (value := loss.item())
        first = value if first is None else first
        if not math.isfinite(value) or value <= ENOUGH * abs(first):
            return
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _judged(losses: list[float]) -> dict[str, Any]:
    first, end = losses[0], losses[-LAST:]
    last = min(end) if all(math.isfinite(v) for v in end) else math.inf
    share = last / first if first > 0 and math.isfinite(first) else math.inf
    fifth = len(losses) // 5
    falling = fifth >= 5 and median(losses[-fifth:]) < 0.95 * median(losses[-2 * fifth:-fifth])
    return {"first": first, "last": last, "share": share, "steps": len(losses), "falling": falling}


def train_and_eval(model: nn.Module, compute_loss: Callable[[nn.Module], Tensor]) -> dict[str, float]:
    """Loss of the batch with the model as it is and in eval mode, from the same random state; {} where it is in eval mode, or refuses.

    Flags and running statistics change: to be called within `untouched`.
    """
    if not model.training:
        return {}
    found = {}
    with torch.no_grad(), contextlib.suppress(Exception):
        for mode in ("train", "eval"):
            model.train(mode == "train")
            with same_randomness():
                found[mode] = compute_loss(model).item()
    return found if len(found) == 2 else {}
