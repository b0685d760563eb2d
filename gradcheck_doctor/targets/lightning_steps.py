"""A LightningModule's own training_step and optimizer, without a Trainer."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradcheck_doctor.targets.memory import default_optimizer


def has_step(model: nn.Module) -> bool:
    """True for a LightningModule (of either package) that defines its own training_step."""
    return any(c.__name__ == "LightningModule" for c in type(model).__mro__) and "training_step" in {
        k for c in type(model).__mro__ if c.__name__ != "LightningModule" and "lightning" not in c.__module__.split(".")[0] for k in vars(c)}


def compute(batch: Any, fallback: Callable[[nn.Module], Tensor]) -> Callable[[nn.Module], Tensor]:
    """Loss of `training_step(batch, 0)`; logging is muted meanwhile; what needs a Trainer falls back to the plain forward."""
    def run(model: nn.Module) -> Tensor:
        muted = {name: model.__dict__.get(name) for name in ("log", "log_dict")}
        object.__setattr__(model, "log", lambda *a, **k: None)
        object.__setattr__(model, "log_dict", lambda *a, **k: None)
        try:
            result = model.training_step(batch, 0)  # type: ignore[operator]
        except RuntimeError as error:
            if "Trainer" not in str(error):
                raise
            return fallback(model)
        finally:
            for name, value in muted.items():
                model.__dict__.pop(name, None)
                if value is not None:
                    object.__setattr__(model, name, value)
        loss = result["loss"] if isinstance(result, dict) else result
        return loss if isinstance(loss, Tensor) else fallback(model)

    return run


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The (first) optimizer of configure_optimizers."""
    result = model.configure_optimizers()  # type: ignore[operator]
    if isinstance(result, dict):
        result = result["optimizer"]
    while isinstance(result, (tuple, list)):
        result = result[0]
    return result if isinstance(result, torch.optim.Optimizer) else default_optimizer(model)
