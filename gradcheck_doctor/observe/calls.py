"""Calls of the training loop that are known by the frame they come from, and what being called costs."""
from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradcheck_doctor.observe.provenance import user_span

_CLIPPERS = {"clip_grad_norm_": "clip_norm", "clip_grad_value_": "clip_value", "_clip_grads_with_norm_": "clip_norm"}
_CLIPPING_OPERATIONS = frozenset({"_foreach_norm", "vector_norm", "linalg_vector_norm", "norm", "_foreach_clamp_min_", "_foreach_clamp_max_",
                                  "clamp_", "_foreach_mul_", "tensor"})      # the last makes the norm of no gradient at all


def clipping(func: Callable[..., Any], frame: FrameType | None) -> tuple[str, Any] | None:
    """("clip", (kind, threshold, the user's line)) when `func`, called from `frame`, is part of torch's own clipping.

    Clipping belongs between backward and step; it is looked for before backward, too.
    """
    if getattr(func, "__name__", "") not in _CLIPPING_OPERATIONS:
        return None
    for _ in range(8):
        if frame is None:
            return None
        kind = _CLIPPERS.get(frame.f_code.co_name)
        if kind is not None and frame.f_code.co_filename.endswith("clip_grad.py"):
            threshold = frame.f_locals.get("max_norm", frame.f_locals.get("clip_value"))
            return "clip", (kind, None if threshold is None else float(threshold), user_span(frame))
        frame = frame.f_back
    return None


def still_scaled(parameters: Iterable[Tensor], norms: Mapping[int, float | None]) -> bool:
    """The gradients are as backward left them (`norms`, by id of the parameter): nothing divided them by the loss scale.

    Decided on the first one with a finite norm other than 0, however the unscaling is written.
    """
    for parameter in parameters:
        norm, gradient = norms.get(id(parameter)), parameter.grad
        if norm and math.isfinite(norm) and gradient is not None and not gradient.is_sparse and not hasattr(gradient, "to_local"):
            return abs(float(torch.linalg.vector_norm(gradient.detach().float())) / norm - 1.0) < 0.01
    return False


def loss_scale(frame: FrameType | None) -> tuple[str, Any] | None:
    """("scale", factor) inside `GradScaler.scale(loss)`: every gradient of the step carries that factor."""
    for _ in range(6):
        if frame is None:
            return None
        if frame.f_code.co_name in ("scale", "apply_scale") and frame.f_code.co_filename.endswith("grad_scaler.py"):
            scaler = frame.f_locals.get("self")
            return None if scaler is None else ("scale", scaler.get_scale())
        frame = frame.f_back
    return None


@functools.cache
def call_seconds() -> float:
    """What torch needs to call a mode or a hook at all, beside what happens in it: measured once."""
    class Nothing(TorchFunctionMode):
        def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
            return func(*args, **(kwargs or {}))

    value = torch.zeros(1)

    def calls() -> float:
        start = perf_counter()
        for _ in range(20):
            value.detach()
        return perf_counter() - start

    plain = min(calls() for _ in range(20))
    with Nothing():
        seen = min(calls() for _ in range(20))
    return max(0.0, (seen - plain) / 20)
