"""How the gradient of one value is taken: where backward passes it to the autograd node that made the value."""
from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor, is_legacy_batchedtensor

from gradcheck_doctor.observe.collector import Cell
from gradcheck_doctor.observe.graph import Node

if TYPE_CHECKING:
    from gradcheck_doctor.observe.observer import Observer


def batched(gradient: Tensor) -> bool:
    """It is many gradients at once, as of torch.autograd.grad(..., is_grads_batched=True): nothing is read of these."""
    return bool(is_legacy_batchedtensor(gradient) or is_batchedtensor(gradient))


class GradientHook(Cell):
    """Takes the gradient of one output where backward passes it to the autograd node that made it.

    `register_prehook` makes a handle and a dictionary on each call: most of what a known value costs. A dictionary that is kept on a tensor of ours and
    handed to the node costs a tenth of that; it serves the first output of a node only, which nearly all have as their only one.
    """

    __slots__ = ("carrier", "observer", "output")

    def __init__(self, observer: Observer, node: Node, output: int) -> None:
        super().__init__(node.gradient)
        self.observer, self.output = observer, output
        self.carrier: Tensor | None = None

    def attach(self, made_by: Any) -> None:
        """To the autograd node of the value, once for each value."""
        if self.output or not hasattr(made_by, "_register_hook_dict"):
            made_by.register_prehook(self._among)
            return
        if self.carrier is None:
            self.carrier = torch.empty(0, device="cpu")
            self.carrier._backward_hooks = OrderedDict(((0, self),))
        made_by._register_hook_dict(self.carrier)

    def _among(self, gradients: tuple[Tensor | None, ...]) -> None:
        if self.output < len(gradients):
            self(gradients[self.output])

    def __call__(self, gradient: Tensor | None) -> None:
        row, observer = self.row, self.observer
        if gradient is None or row is None and (not observer.active or observer.failure is not None):
            return
        started = observer.clock()
        try:
            new = row is None or gradient.requires_grad or not self.taken(gradient, row, observer.collector if observer.exact else None)
            if new and not batched(gradient):
                observer.take(self, gradient.detach() if gradient.requires_grad else gradient)
        except Exception as error:
            observer.fail(error)
        observer.seconds += observer.clock() - started
