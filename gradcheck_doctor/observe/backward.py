"""`Tensor.backward`, wrapped while a monitor is attached: the loss of every step is known, observed or not."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from gradcheck_doctor.observe.observer import Observer


class BackwardCalls:
    """Calls `after` with the loss after each backward; not after the one that `observer`'s mode makes of the same call."""

    def __init__(self, observer: Observer, after: Callable[[Tensor], None]) -> None:
        self.observer, self.after = observer, after
        self._original: Any = None

    def attach(self) -> None:
        original, observer, after = Tensor.backward, self.observer, self.after

        @functools.wraps(original)
        def backward(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if observer.in_backward:
                return original(tensor, *args, **kwargs)
            result = original(tensor, *args, **kwargs)
            after(tensor)
            return result

        self._original = original
        Tensor.backward = backward  # type: ignore[method-assign, assignment]

    def detach(self) -> None:
        if self._original is not None:
            Tensor.backward = self._original  # type: ignore[method-assign]
            self._original = None
