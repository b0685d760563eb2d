"""What is known of each optimizer: cheap on every step, in full on observed ones."""
from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from gradcheck_doctor.observe.updates import Updates
from gradcheck_doctor.records.recording import OptimizerGroup, OptimizerRecord
from gradcheck_doctor.records.sites import Span


class KnownOptimizer:
    """An optimizer that steps parameters we watch; does not keep it alive."""

    def __init__(self, optimizer: torch.optim.Optimizer, number: int, built: Span | None) -> None:
        self.ref = weakref.ref(optimizer)
        self.number, self.built = number, built
        self.steps = 0
        self.stepped: Span | None = None
        self.zeroed = True
        self.stale = False                  # the gradients of the step before were still there at the last step seen in full
        self.held: set[int] = set()
        self.updates = Updates()
        self._initial = [float(g.get("lr", math.nan)) for g in optimizer.param_groups]
        self._rates = self._initial
        self._last: OptimizerRecord | None = None
        self.look()

    def parameters(self) -> list[Tensor]:
        optimizer = self.ref()
        return [p for group in optimizer.param_groups for p in group["params"]] if optimizer is not None else []

    def some(self, number: int) -> Iterator[Tensor]:
        """The first few parameters that are trained."""
        optimizer = self.ref()
        groups = optimizer.param_groups if optimizer is not None else []
        return itertools.islice((p for group in groups for p in group["params"] if p.requires_grad), number)

    def look(self) -> bool:
        """Read the parameter groups in full; whether there are new parameters in them."""
        before = len(self.held)
        self.held.update(id(p) for p in self.parameters())
        self._last = self._read() or self._last
        return len(self.held) > before

    def step_ended(self) -> float | None:
        """Count a step and keep the learning rates it was made with (a schedule changes them afterwards); that of the first group, None without any."""
        optimizer = self.ref()
        if optimizer is not None:
            self._rates = [g.get("lr", math.nan) for g in optimizer.param_groups]
        self.steps += 1
        return float(self._rates[0]) if self._rates else None

    def _read(self) -> OptimizerRecord | None:
        optimizer = self.ref()
        if optimizer is None:
            return None
        groups = tuple(OptimizerGroup(
            lr=float(g.get("lr", math.nan)), parameters=tuple(str(id(p)) for p in g["params"]), weight_decay=float(g.get("weight_decay", 0.0) or 0.0),
            momentum=float(g.get("momentum", 0.0) or 0.0), eps=g.get("eps"), betas=tuple(float(b) for b in g.get("betas", ())),
            initial_lr=self._initial[i] if i < len(self._initial) else None) for i, g in enumerate(optimizer.param_groups))
        return OptimizerRecord(type(optimizer).__name__, groups)

    def record(self, names: dict[int, str]) -> OptimizerRecord | None:
        """The record as of the last step, parameters by `names`."""
        record = self._read() or self._last
        if record is None:
            return None
        rates = self._rates if len(self._rates) == len(record.groups) else [g.lr for g in record.groups]
        groups = tuple(replace(g, lr=float(lr), parameters=tuple(names.get(int(p), "?") for p in g.parameters))
                       for g, lr in zip(record.groups, rates, strict=True))
        return replace(record, groups=groups, built=self.built, stepped=self.stepped, steps=self.steps)
