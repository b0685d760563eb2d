"""How a change to a live model is taken back: each step notes its inverse before it acts."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Journal:
    """Inverses of what was done, played backwards by `undo`. Holds copies of what it changed and of nothing else.

    Attributes:
        touched: identities of the tensors and tables that were changed, to tell which changes build on each other.
    """

    def __init__(self) -> None:
        self.touched: set[int] = set()
        self._inverse: list[Callable[[], None]] = []
        self._keep: list[Any] = []                       # what `touched` names must stay alive, or an id could be used again
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None

    def note(self, touched: Any, inverse: Callable[[], None]) -> None:
        """An inverse, and the object that it puts right."""
        self.touched.add(id(touched))
        self._keep.append(touched)
        self._inverse.append(inverse)

    def values(self, tensor: Tensor) -> None:
        """Before `tensor` is overwritten in place: its values and its gradient come back."""
        saved, gradient = tensor.detach().clone(), tensor.grad if tensor.is_leaf else None

        def inverse() -> None:
            with torch.no_grad():
                tensor.copy_(saved)
            if tensor.is_leaf:
                tensor.grad = gradient

        self.note(tensor, inverse)

    def table(self, table: dict[str, Any]) -> None:
        """Before entries of a module's table (`_modules`, `_parameters`) or of an optimizer's group change: content and order come back."""
        saved = {k: list(v) if k == "params" and isinstance(v, list) else v for k, v in table.items()}
        lists = {k: v for k, v in table.items() if k == "params" and isinstance(v, list)}

        def inverse() -> None:
            table.clear()
            table.update(saved)
            for key, same in lists.items():
                same[:] = saved[key]
                table[key] = same

        self.note(table, inverse)

    def sequence(self, entries: list[Any]) -> None:
        """Before a list changes: its entries come back."""
        saved = list(entries)

        def inverse() -> None:
            entries[:] = saved

        self.note(entries, inverse)

    def trainable(self, parameter: nn.Parameter) -> None:
        """Before `requires_grad` of a parameter changes."""
        saved, gradient = parameter.requires_grad, parameter.grad

        def inverse() -> None:
            parameter.requires_grad_(saved)
            parameter.grad = gradient

        self.note(parameter, inverse)

    def undo(self) -> None:
        """Play the inverses backwards and set the random state of the time before."""
        while self._inverse:
            self._inverse.pop()()
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
