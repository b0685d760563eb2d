"""How the gradient of one value is taken: where backward passes it to the autograd node that made the value."""
from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradcheck_doctor.observe.collector import Layout
from gradcheck_doctor.observe.graph import Node

if TYPE_CHECKING:
    from gradcheck_doctor.observe.observer import Observer


class GradientHook:
    """Takes the gradient of one output where backward passes it to the autograd node that made it.

    `register_prehook` makes a handle and a dictionary on each call: most of what a known value costs. A dictionary that is kept on a tensor of ours and
    handed to the node costs a tenth of that; it serves the first output of a node only, which nearly all have as their only one.
    """

    __slots__ = ("carrier", "layout", "observer", "place", "series")

    def __init__(self, observer: Observer, node: Node, place: int) -> None:
        self.observer, self.series, self.place = observer, node.gradient, place
        self.carrier: Tensor | None = None
        self.layout: Layout | None = None

    def attach(self, made_by: Any) -> None:
        """To the autograd node of the value, once for each value."""
        if self.place or not hasattr(made_by, "_register_hook_dict"):
            made_by.register_prehook(self._among)
            return
        if self.carrier is None:
            self.carrier = torch.empty(0)
            self.carrier._backward_hooks = OrderedDict(((0, self),))
        made_by._register_hook_dict(self.carrier)

    def _among(self, gradients: tuple[Tensor | None, ...]) -> None:
        if self.place < len(gradients):
            self(gradients[self.place])

    def __call__(self, gradient: Tensor | None) -> None:
        observer = self.observer
        if gradient is None or not observer.active or observer.failure is not None:
            return
        started = observer.clock()
        observer.calls += 1
        try:
            value = gradient.detach() if gradient.requires_grad else gradient
            layout = self.layout
            if layout is None or not layout.fits(value):
                layout = self.layout = observer.collector.layout(value)
            observer._pending.append((self.series, observer.collector.put(value, observer.exact, layout)))
        except Exception as error:
            observer._fail(error)
        observer.seconds += observer.clock() - started
