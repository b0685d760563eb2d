"""A model comes back exactly as it was: values, gradients, flags, attributes, hooks, random state."""
from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def same_randomness() -> Iterator[None]:
    """Restore the random state of torch (all devices in use), numpy and Python."""
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    python = random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if numpy is not None and numpy_state is not None:
            numpy.random.set_state(numpy_state)
        random.setstate(python)


@contextmanager
def untouched(model: nn.Module) -> Iterator[nn.Module]:
    """Whatever happens inside, `model` and the random state are bitwise the same afterwards.

    Also restored: `.grad` of every parameter (the very same tensors), `requires_grad`, training flags of every submodule, buffers
    (BatchNorm statistics), plain attributes that a forward changes, and hooks. Nested use is fine.
    """
    modules = list(model.modules())
    attributes = [(m, dict(m.__dict__), {k: _copy(v) for k, v in m.__dict__.items()}) for m in modules]
    tensors = _tensors(modules)
    values = [(t, t._version, None if t.is_meta else t.detach().clone(), t.grad if t.is_leaf else None, t.requires_grad) for t in tensors]
    gradients = {id(g): (g, g._version, g.detach().clone()) for *_, g, _ in values if g is not None}
    with same_randomness():
        try:
            for parameter in model.parameters():
                parameter.grad = None
            yield model
        finally:
            for module, whole, copies in attributes:
                _restore_attributes(module, whole, copies)
            _restore_tensors(values, gradients)


def _tensors(modules: list[nn.Module]) -> list[torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    for module in modules:
        for value in (*module._parameters.values(), *module._buffers.values(), *module.__dict__.values()):
            if isinstance(value, torch.Tensor):
                found[id(value)] = value
    return list(found.values())


def _copy(value: Any) -> Any:
    """A shallow copy of a plain container, so that a change in place can be undone; anything else by reference."""
    return value.copy() if type(value) in (list, dict, set) or type(value).__name__ == "OrderedDict" else value


def _restore_attributes(module: nn.Module, whole: dict[str, Any], copies: dict[str, Any]) -> None:
    module.__dict__.clear()
    module.__dict__.update(whole)
    for name, old in copies.items():
        current = whole[name]
        if current is old:
            continue
        if isinstance(current, list):
            current[:] = old
        elif isinstance(current, (dict, set)):
            current.clear()
            current.update(old)


@torch.no_grad()
def _restore_tensors(values: list[Any], gradients: dict[int, Any]) -> None:
    for tensor, version, copy, gradient, requires_grad in values:
        if copy is not None and (tensor._version != version or not torch.equal(tensor, copy)):   # batch_norm writes its statistics unversioned
            tensor.data.copy_(copy)
        if tensor.is_leaf:
            tensor.requires_grad_(requires_grad)
            if tensor.grad is not gradient:
                tensor.grad = gradient
    for gradient, version, copy in gradients.values():
        if gradient._version != version:
            gradient.data.copy_(copy)
