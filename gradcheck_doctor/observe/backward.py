"""`Tensor.backward`, `torch.autograd.backward` and `.grad`, wrapped while a monitor is attached: the loss of every step is known, observed or not."""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

PLACES = (Tensor, torch.autograd)              # where a function `backward` is kept


def loss_of(tensors: Any) -> Tensor | None:
    """What backward begins at: a tensor, the sum of several losses of one element, None where it is neither."""
    if isinstance(tensors, Tensor):
        return tensors
    given = list(tensors) if isinstance(tensors, Iterable) else []
    if len(given) == 1 and isinstance(given[0], Tensor):
        return given[0]
    single = [t.detach().reshape(()) for t in given if isinstance(t, Tensor) and t.numel() == 1]
    return torch.stack(single).sum() if single and len(single) == len(given) else None


def asked_for(inputs: Any, given: Any, grad_outputs: Any = None, retain_graph: bool | None = None, create_graph: bool = False, *,
              is_grads_batched: bool = False, **_: Any) -> dict[int, Tensor]:
    """The gradients that a call of `torch.autograd.grad` gave, by id of the leaf they are of; {} where the graph lives on, for another backward."""
    if create_graph or retain_graph or is_grads_batched:
        return {}
    leaves = [inputs] if isinstance(inputs, Tensor) else inputs
    return {id(leaf): gradient for leaf, gradient in zip(leaves, given, strict=False)
            if isinstance(leaf, Tensor) and isinstance(gradient, Tensor) and leaf.is_leaf}


class BackwardCalls:
    """Calls `after` with the loss after each backward that the user calls; not after those inside of one (a call seen by a mode, a checkpoint).

    After `torch.autograd.grad` it calls `after_grad` with the loss, and the gradients of leaves by their ids, if this was the last use of the graph.
    """

    def __init__(self, after: Callable[[Tensor], None], after_grad: Callable[[Tensor, dict[int, Tensor]], None]) -> None:
        self.after, self.after_grad = after, after_grad
        self._inside = False
        self._originals: list[tuple[Any, str, Any]] = []                # what was put in place of which function: owner, name, function

    def attach(self) -> None:
        for place, name, wrapped in (*((place, "backward", self._wrapped) for place in PLACES), (torch.autograd, "grad", self._wrapped_grad)):
            original = getattr(place, name)
            self._originals.append((place, name, original))
            setattr(place, name, wrapped(original))

    def detach(self) -> None:
        for place, name, original in self._originals:
            setattr(place, name, original)
        self._originals = []

    def _wrapped_grad(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def grad(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if self._inside or not self._originals:
                return original(outputs, inputs, *args, **kwargs)
            if isinstance(inputs, Iterator):                            # model.parameters(), which can be read once
                inputs = tuple(inputs)
            self._inside = True
            try:
                result = original(outputs, inputs, *args, **kwargs)
            finally:
                self._inside = False
            if given := asked_for(inputs, result, *args, **kwargs):
                with torch._C.DisableTorchFunction():
                    loss = loss_of(outputs)
                if loss is not None:
                    self.after_grad(loss, given)
            return result

        return grad

    def _wrapped(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            if self._inside or not self._originals:                     # a name that the script keeps of it outlives the monitor
                return original(tensors, *args, **kwargs)
            self._inside = True
            try:
                result = original(tensors, *args, **kwargs)
            finally:
                self._inside = False
            with torch._C.DisableTorchFunction():                       # a mode of ours may be on
                loss = loss_of(tensors)
            if loss is not None:
                self.after(loss)
            return result

        return backward
