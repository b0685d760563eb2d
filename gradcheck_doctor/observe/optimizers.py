"""What is known of each optimizer: cheap on every step, in full on observed ones."""
from __future__ import annotations

import itertools
import math
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gradcheck_doctor.observe.provenance import ConstructionLog
from gradcheck_doctor.observe.rate_schedules import RateSchedule
from gradcheck_doctor.observe.updates import Updates, any_gradient, left_over, sample
from gradcheck_doctor.records.recording import OptimizerGroup, OptimizerRecord
from gradcheck_doctor.records.sites import Span

SETTINGS = ("lr", "weight_decay", "momentum", "eps", "betas")       # of a parameter group, kept beside its parameters


def _number(value: Any, otherwise: Any = math.nan) -> Any:
    """A setting as a float; `otherwise` where an optimizer keeps something else there (Adafactor: a pair for eps, no learning rate)."""
    return float(value) if isinstance(value, (int, float, Tensor)) and (not isinstance(value, Tensor) or value.numel() == 1) else otherwise


class WaitingOptimizer:
    """An optimizer that was built and has not stepped yet; of its parameters the ids."""

    def __init__(self, optimizer: torch.optim.Optimizer, built: Span | None) -> None:
        self.name, self.built = type(optimizer).__name__, built
        self.held = {id(p) for group in optimizer.param_groups for p in group["params"]}


class Optimizers:
    """The optimizers met so far.

    Args:
        ours: whether an optimizer steps parameters that are watched; None takes every one.
    """

    def __init__(self, log: ConstructionLog | None, ours: Callable[[torch.optim.Optimizer], bool] | None) -> None:
        self._log, self._ours = log, ours
        self._known: dict[int, KnownOptimizer] = {}
        self._foreign: dict[int, weakref.ref[torch.optim.Optimizer]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[KnownOptimizer]:
        """In the order in which they were met."""
        return iter(sorted(self._known.values(), key=lambda o: o.number))

    def find(self, optimizer: torch.optim.Optimizer) -> KnownOptimizer | None:
        known = self._known.get(id(optimizer))
        return known if known is not None and known.ref() is optimizer else None

    def meet(self, optimizer: torch.optim.Optimizer, before: int) -> KnownOptimizer | None:
        """A new one, numbered behind `before` others that are none of torch's; None if it is not ours."""
        refused = self._foreign.get(id(optimizer))
        if refused is not None and refused() is optimizer:
            return None
        if self._ours is not None and not self._ours(optimizer):
            self._foreign[id(optimizer)] = weakref.ref(optimizer)
            return None
        number = len(self._known) + before
        if (gone := self._known.get(id(optimizer))) is not None:
            self._known[-1 - gone.number] = gone                    # it was deleted, and its id given to this one
        log = self._log
        found = self._known[id(optimizer)] = KnownOptimizer(
            optimizer, number, log.optimizers.get(optimizer) if log is not None else None, log.schedules.get(optimizer) if log is not None else None)
        return found

    def waiting(self) -> list[WaitingOptimizer]:
        """Those that were built, or are known, as training begins."""
        built = self._log.optimizers.items() if self._log is not None and self._ours is None else ()
        return [WaitingOptimizer(o, span) for o, span in built] + [WaitingOptimizer(o, known.built) for known in self if (o := known.ref()) is not None]


class Stepping(ABC):
    """What changes the weights, step by step: an optimizer of torch, or the loop itself."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.steps = 0
        self.held = set[int]()              # ids of its parameters
        self.zeroed = True
        self.looked_back = False            # a backward of this step was seen to begin
        self.leftovers: list[tuple[Tensor, Tensor]] = []        # parameters whose gradients were still there then, and samples of these
        self.stale = False                  # the gradients of the step before were still there at the last step seen in full

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """All that it may change."""

    @abstractmethod
    def some(self, number: int) -> Iterator[Tensor]:
        """The first few that are trained."""

    @abstractmethod
    def look(self) -> bool:
        """Note what it holds now; whether that is more than was known."""

    def step_ended(self) -> float | None:
        """Count a step; the learning rate it was made with, None where that is not known."""
        self.steps += 1
        return None

    def look_back(self) -> None:
        """Just before a backward: are gradients of the step before still there?"""
        self.looked_back = True
        if self.steps and not self.zeroed:
            self.leftovers = [(p, sample(p.grad).clone()) for p in self.some(50) if p.grad is not None and left_over(p)]
            self.zeroed = not self.leftovers

    def compare_back(self) -> None:
        """Just behind a backward: what it added nothing to is not left over, it belongs to another part of the step."""
        if self.leftovers:
            self.zeroed = all(p.grad is not None and torch.equal(sample(p.grad), old) for p, old in self.leftovers)
            self.leftovers = []

    def seen_in_full(self, backwards: int) -> None:
        """A step that was seen in full, with so many backward passes, ended: between two of them `stale` stays what it was."""
        self.stale = self.steps > 2 and self.looked_back and not self.zeroed and backwards > 0
        self.zeroed = self.looked_back = False


class KnownOptimizer(Stepping):
    """An optimizer that steps parameters we watch; does not keep it alive."""

    def __init__(self, optimizer: torch.optim.Optimizer, number: int, built: Span | None, schedule: RateSchedule | None = None) -> None:
        super().__init__(number)
        self.ref = weakref.ref(optimizer)
        self.built, self.schedule = built, schedule or RateSchedule()
        self.stepped: Span | None = None
        self.looked = self.emptied = 0      # steps before which backward's gradients were looked for, and those before which they were gone
        self.updates = Updates()
        self.name = type(optimizer).__name__
        self._initial: list[float | None] = [_number(g.get("initial_lr", g.get("lr"))) for g in optimizer.param_groups]     # a schedule has set the rate
        self._rates: list[Any] = [g.get("lr", math.nan) for g in optimizer.param_groups]
        self._groups: list[dict[str, Any]] = []                     # as they were when last looked at, parameters by id
        self.look()

    def parameters(self) -> list[Tensor]:
        optimizer = self.ref()
        return [p for group in optimizer.param_groups for p in group["params"]] if optimizer is not None else []

    def some(self, number: int) -> Iterator[Tensor]:
        """The first few parameters that are trained."""
        optimizer = self.ref()
        groups = optimizer.param_groups if optimizer is not None else []
        return itertools.islice((p for group in groups for p in group["params"] if p.requires_grad), number)

    def take_stock(self, norms: Mapping[int, float | None]) -> None:
        """Just before a step: are the gradients still there that backward left? `norms` by id of the parameter."""
        if any(norms.get(key) for key in self.held):
            self.looked += 1
            self.emptied += not (any(map(left_over, self.some(50))) or any(map(any_gradient, self.parameters())))

    def look(self) -> bool:
        """Note the parameter groups as they are; whether there are parameters in them that no earlier look saw."""
        self._read()
        before = len(self.held)
        for group in self._groups:
            self.held.update(group["params"])
        return len(self.held) > before

    def step_ended(self) -> float | None:
        """Count a step and keep the learning rates it was made with (a schedule changes them afterwards); that of the first group, None without any."""
        optimizer = self.ref()
        if optimizer is not None:
            self._rates = [g.get("lr", math.nan) for g in optimizer.param_groups]
        self.steps += 1
        return _number(self._rates[0]) if self._rates else None

    def _read(self) -> None:
        optimizer = self.ref()
        if optimizer is not None:
            self._groups = [{name: group[name] for name in SETTINGS if name in group} | {"params": [id(p) for p in group["params"]]}
                            for group in optimizer.param_groups]

    def record(self, names: dict[int, str]) -> OptimizerRecord:
        """The record as of the last step, parameters by `names`; of one that was deleted as it was when last looked at."""
        self._read()
        rates = self._rates if len(self._rates) == len(self._groups) else [g.get("lr", math.nan) for g in self._groups]
        initial = self._initial + [None] * (len(self._groups) - len(self._initial))
        groups = tuple(OptimizerGroup(
            lr=_number(lr), parameters=tuple(names.get(p, "?") for p in g["params"]), weight_decay=_number(g.get("weight_decay"), 0.0),
            momentum=_number(g.get("momentum"), 0.0), eps=_number(g["eps"], None) if "eps" in g else None,
            betas=tuple(_number(b) for b in g.get("betas") or ()),
            initial_lr=first) for g, lr, first in zip(self._groups, rates, initial, strict=False))
        return OptimizerRecord(self.name, groups, built=self.built, stepped=self.stepped, steps=self.steps,
                               scheduled=self.schedule.built, schedule_stepped=self.schedule.stepped, plan=self.schedule.plan())
