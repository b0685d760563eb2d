"""From a model's output to a scalar: the given loss, the output's own, or a random unit cotangent."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gradcheck_doctor.errors import BatchError, ProbeError


def output_tensors(output: Any) -> Iterator[Tensor]:
    """Floating tensors in an output: tensor, tuple, list, dict, dataclass or ModelOutput."""
    if isinstance(output, Tensor):
        if output.is_floating_point() or output.is_complex():
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from output_tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from output_tensors(value)
    elif hasattr(output, "__dict__") and not isinstance(output, nn.Module):
        for value in vars(output).values():
            yield from output_tensors(value)


def cotangent_loss(output: Any, seed: int) -> Tensor:
    """Sum over the outputs of <output, v> with v random of norm 1: its gradient at the output is v, so nothing is scaled."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [t for t in output_tensors(output) if t.requires_grad] or list(output_tensors(output))
    if not tensors:
        raise ProbeError("the forward returned no floating tensor, so there is nothing to differentiate.\n"
                         "Pass a loss: --loss 'lambda output, target: ...' on the command line, loss=... in Python.")
    total: Tensor | None = None
    for tensor in tensors:
        direction = torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
        term = (tensor * (direction / direction.norm().clamp_min(1e-12))).sum()
        total = term if total is None else total + term
    assert total is not None
    return total.real if total.is_complex() else total


def call(model: nn.Module, inputs: Any) -> Any:
    """Forward on a batch: a tensor, a tuple of positional inputs, a dict of keyword inputs."""
    if isinstance(inputs, dict) or hasattr(inputs, "keys") and hasattr(inputs, "__getitem__"):
        return model(**{k: inputs[k] for k in inputs})
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def make_loss(inputs: Any, targets: Any, loss: Callable[..., Any] | None, seed: int) -> Callable[[nn.Module], Tensor]:
    """A function of the model alone. The very tensors of the batch are passed each time, cloned so that no forward can change them."""
    clean = False

    def compute(model: nn.Module) -> Tensor:
        nonlocal clean
        if not clean:
            refuse_nan(inputs)
            clean = True
        output = call(model, _fresh(inputs))
        if loss is not None:
            value = loss(output, _fresh(targets)) if targets is not None else loss(output)
        elif isinstance(getattr(output, "loss", None), Tensor):
            value = output.loss
        else:
            value = cotangent_loss(output, seed)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise BatchError(f"the loss must be a scalar tensor, not {_describe(value)}; average it over the batch")
        return value.reshape(())

    return compute


def _fresh(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_fresh(v) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_fresh(v) for v in value)
    if type(value) is dict:
        return {k: _fresh(v) for k, v in value.items()}
    return value


def _describe(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def checked(inputs: Any) -> None:
    """Refuse what can't be a batch, before anything runs.

    Raises:
        BatchError: no tensors in it, or no samples.
    """
    tensors = list(_all_tensors(inputs))
    if not tensors:
        raise BatchError(f"the batch holds no tensor (it is {_describe(inputs)}); pass tensors, such as --input float32[32,10]")
    if any(t.dim() > 0 and t.shape[0] == 0 for t in tensors):
        raise BatchError(f"the batch is empty (shapes {[tuple(t.shape) for t in tensors]}); statistics need at least one sample")


def refuse_nan(inputs: Any) -> None:
    """NaN in the inputs makes everything behind them NaN, so nothing can be said about the model. NaN in the targets is a finding, not a refusal.

    Raises:
        BatchError: with how many values of which tensor.
    """
    for tensor in _all_tensors(inputs):
        if tensor.is_floating_point() and not tensor.is_meta and (lost := int(tensor.isnan().sum())):
            raise BatchError(f"the batch holds NaN ({lost} of {tensor.numel()} values of a tensor of shape {tuple(tensor.shape)}), "
                             "so everything behind it is NaN, too; clean the data first")


def _all_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from _all_tensors(v)
    elif hasattr(value, "values") and callable(value.values):
        for v in value.values():
            yield from _all_tensors(v)
