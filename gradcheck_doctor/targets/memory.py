"""A target made from objects in memory, for `doctor.audit(model, batch, loss=...)`."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gradcheck_doctor.errors import BatchError, ProbeError
from gradcheck_doctor.observe.provenance import current_log
from gradcheck_doctor.observe.trials import adam
from gradcheck_doctor.targets.losses import checked, make_loss
from gradcheck_doctor.targets.target import Target


def target_of_model(model: nn.Module, batch: Any, loss: Callable[..., Any] | None = None, *, seed: int = 0,
                    optimizer: Callable[[nn.Module], Any] | None = None, name: str = "") -> Target:
    """Wrap a live model. With a loss that takes targets the batch is (inputs, targets).

    Raises:
        BatchError: the batch has no tensors or no samples, or is no pair although a loss is given.
    """
    if not isinstance(model, nn.Module):
        raise ProbeError(f"audit needs a torch.nn.Module, not {type(model).__name__}")
    if loss is not None and not callable(loss):
        raise ProbeError(f"loss must be a function of (output, targets), not {type(loss).__name__}")
    inputs, targets = batch, None
    if loss is not None:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise BatchError("with a loss the batch is the pair (inputs, targets); wrap several inputs in a tuple of their own")
        inputs, targets = batch
    checked(inputs)
    described = "given loss" if loss is not None else "output.loss or a random unit cotangent"
    return Target(name=name or type(model).__name__, model=model, compute_loss=_guarded(make_loss(inputs, targets, loss, seed), inputs),
                  optimizer_factory=optimizer or default_optimizer, log=current_log(), seed=seed,
                  choices={"batch": shapes(inputs), "loss": described})


def default_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Adam at 1e-3, used for throw-away steps when the target names no optimizer."""
    return adam(model)


def shapes(value: Any) -> str:
    """The batch in a few words."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}[{','.join(map(str, value.shape))}]"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(shapes(v) for v in value) + ")"
    if hasattr(value, "keys"):
        return "{" + ", ".join(f"{k}: {shapes(value[k])}" for k in value) + "}"
    return type(value).__name__


def _guarded(compute: Callable[[nn.Module], torch.Tensor], inputs: Any) -> Callable[[nn.Module], torch.Tensor]:
    """Say which batch a failing forward was given; our own errors pass."""
    def guarded(model: nn.Module) -> torch.Tensor:
        try:
            return compute(model)
        except (BatchError, ProbeError):
            raise
        except Exception as error:
            raise BatchError(f"the forward pass (or the loss) raised {type(error).__name__}: {error}\nbatch: {shapes(inputs)}. "
                             "Pass one that fits: --input float32[32,10] or --batch EXPR (batch=... in Python)") from error

    return guarded
