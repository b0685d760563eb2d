"""Parameters that come and go must come and go in the optimizer too."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.treatments.live_journal import Journal


class Optimizers:
    """The optimizers of a live model; empty when none was given."""

    def __init__(self, given: Any = None) -> None:
        if given is None:
            given = ()
        several = given if isinstance(given, (list, tuple)) else (given,)
        self.all: tuple[torch.optim.Optimizer, ...] = tuple(_plain(o) for o in several)

    def __bool__(self) -> bool:
        return bool(self.all)

    def holding(self, parameter: nn.Parameter) -> tuple[torch.optim.Optimizer, dict[str, Any]] | None:
        """(optimizer, group) that holds a parameter."""
        for optimizer in self.all:
            for group in optimizer.param_groups:
                if any(p is parameter for p in group["params"]):
                    return optimizer, group
        return None

    def state(self, parameter: nn.Parameter) -> dict[str, Any]:
        """What an optimizer remembers of a parameter: empty before its first step."""
        return next((dict(o.state[parameter]) for o in self.all if parameter in o.state and o.state[parameter]), {})

    def add(self, parameters: Iterable[nn.Parameter], beside: Iterable[nn.Parameter], journal: Journal) -> None:
        """Put new parameters into the group of the first neighbour that is in one, the last group otherwise.

        Raises:
            TreatmentRefused: the optimizer cannot take another parameter.
        """
        new = [p for p in parameters if p.requires_grad and self.holding(p) is None]
        if not new or not self.all:
            return
        found = next((h for n in beside if (h := self.holding(n)) is not None), (self.all[0], self.all[0].param_groups[-1]))
        optimizer, group = found
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TreatmentRefused("LBFGS cannot take another parameter; build the optimizer after the treatment")
        journal.table(group)
        group["params"].extend(new)
        for parameter in new:
            journal.note(parameter, lambda p=parameter: optimizer.state.pop(p, None))  # type: ignore[misc]

    def remove(self, parameter: nn.Parameter, journal: Journal) -> None:
        """Take a parameter and what is remembered of it out."""
        held = self.holding(parameter)
        if held is None:
            return
        optimizer, group = held
        journal.table(group)
        group["params"][:] = [p for p in group["params"] if p is not parameter]
        self.forget(parameter, journal)

    def forget(self, parameter: nn.Parameter, journal: Journal) -> None:
        """Drop moments that belong to values which are gone."""
        for optimizer in self.all:
            if parameter in optimizer.state:
                saved = optimizer.state.pop(parameter)
                journal.note(saved, lambda o=optimizer, s=saved: o.state.__setitem__(parameter, s))  # type: ignore[misc]


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside a wrapper (Lightning, accelerate).

    Raises:
        TreatmentRefused: it is none.
    """
    inner: Any = optimizer
    while isinstance(getattr(inner, "optimizer", None), torch.optim.Optimizer):
        inner = inner.optimizer
    if not isinstance(inner, torch.optim.Optimizer):
        raise TreatmentRefused(f"optimizer must be a torch.optim.Optimizer (or a list of them), not {type(optimizer).__name__}")
    return inner
