"""How the gradient of one value is taken: where backward passes it to the autograd node that made the value."""
from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from gradcheck_doctor.observe.graph import Node

if TYPE_CHECKING:
    from gradcheck_doctor.observe.observer import Observer


class GradientHook:
    """Takes the gradient of one output where backward passes it to the autograd node that made it."""

    __slots__ = ("observer", "place", "series")

    def __init__(self, observer: Observer, node: Node, place: int) -> None:
        self.observer, self.series, self.place = observer, node.gradient, place

    def __call__(self, gradients: tuple[Tensor | None, ...]) -> None:
        observer = self.observer
        gradient = gradients[self.place] if self.place < len(gradients) else None
        if gradient is None or observer.failure is not None or not observer.active:
            return
        started = observer.clock()
        observer.calls += 1
        try:
            observer._pending.append((self.series, observer.collector.put(gradient.detach() if gradient.requires_grad else gradient, observer.exact)))
        except Exception as error:
            observer._fail(error)
        observer.seconds += observer.clock() - started
