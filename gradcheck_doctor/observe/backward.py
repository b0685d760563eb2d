"""`Tensor.backward` and `torch.autograd.backward`, wrapped while a monitor is attached: the loss of every step is known, observed or not."""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
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


class BackwardCalls:
    """Calls `after` with the loss after each backward that the user calls; not after those inside of one (a call seen by a mode, a checkpoint)."""

    def __init__(self, after: Callable[[Tensor], None]) -> None:
        self.after = after
        self._inside = False
        self._originals: list[Any] = []

    def attach(self) -> None:
        self._originals = [place.backward for place in PLACES]          # type: ignore[attr-defined]
        for place, original in zip(PLACES, self._originals, strict=True):
            place.backward = self._wrapped(original)                    # type: ignore[attr-defined]

    def detach(self) -> None:
        for place, original in zip(PLACES, self._originals, strict=bool(self._originals)):
            place.backward = original                                   # type: ignore[attr-defined]
        self._originals = []

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
