"""Which units of an activation are dead or saturated: exact per unit, over as many samples as were seen."""
from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from gradcheck_doctor.records.summaries import Units

#: Output beyond which the derivative of a bounded activation is below 1 % of its largest: tanh at |x| = 2.993, sigmoid at |x| = 4.585.
SATURATION = {"tanh": (-0.99500, 0.99500), "sigmoid": (0.01010, 0.98990), "hardtanh": (-0.99999, 0.99999), "softsign": (-0.9, 0.9),
              "hardsigmoid": (1e-5, 0.99999)}
RELU_LIKE = frozenset({"relu", "relu6", "threshold", "softshrink", "hardshrink"})
SHARE = 0.95          # of the samples on which a unit must be saturated
WINDOW = 8            # observed steps that `units_last` covers


class UnitActivity:
    """Running activity of the units of one activation site."""

    def __init__(self, op: str, axis: int) -> None:
        self.bounds = SATURATION.get(op)
        self.axis = axis
        self.steps: deque[tuple[Tensor, Tensor, int, bool]] = deque(maxlen=WINDOW)
        self.total: tuple[Tensor, Tensor, int] | None = None
        self.first: tuple[Tensor, Tensor, int] | None = None

    def add(self, output: Tensor, before_update: bool) -> None:
        """Take in one output; `high` is the largest value (or the saturated count) of each unit, `low` the smallest."""
        if output.dim() < 2:
            return
        samples = output.detach().movedim(self.axis, 0).flatten(1)         # (units, samples)
        if self.bounds is None:
            low, high = torch.aminmax(samples, dim=1)
            seen = (high.float().cpu(), low.float().cpu(), samples.shape[1])
            self.total = _extremes(self.total, seen)
        else:
            lower, upper = self.bounds
            count = ((samples <= lower) | (samples >= upper)).sum(dim=1).float().cpu()
            seen = (count, count, samples.shape[1])
            self.total = _counts(self.total, seen)
        if self.total is seen and self.steps:
            self.steps.clear()                                              # the width changed: a layer was replaced
        if before_update:
            self.first = _extremes(self.first, seen) if self.bounds is None else _counts(self.first, seen)
        self.steps.append((*seen, before_update))

    def extremes(self) -> tuple[tuple[Tensor, Tensor, int] | None, tuple[Tensor, Tensor, int] | None, tuple[Tensor, Tensor, int] | None]:
        """What `result` is made from, as tensors over the units: everything, before the first update, the last window."""
        last: tuple[Tensor, Tensor, int] | None = None
        for high, low, count, _ in self.steps:
            last = _extremes(last, (high, low, count)) if self.bounds is None else _counts(last, (high, low, count))
        return self.total, self.first, last

    def result(self) -> tuple[Units | None, Units | None, Units | None]:
        """Over everything, before the first update, and over the last window."""
        total, first, last = self.extremes()
        return self._units(total), self._units(first), self._units(last)

    def _units(self, seen: tuple[Tensor, Tensor, int] | None) -> Units | None:
        if seen is None:
            return None
        high, low, samples = seen
        if self.bounds is None:
            chosen = high <= 0
            return Units(len(high), samples, dead=int(chosen.sum()), always_on=int((low > 0).sum()), indices=_indices(chosen))
        chosen = high >= SHARE * samples
        return Units(len(high), samples, saturated=int(chosen.sum()), indices=_indices(chosen))


def _indices(chosen: Tensor) -> tuple[int, ...]:
    return tuple(chosen.nonzero().flatten()[:64].tolist())


def _extremes(old: tuple[Tensor, Tensor, int] | None, new: tuple[Tensor, Tensor, int]) -> tuple[Tensor, Tensor, int]:
    if old is None or old[0].shape != new[0].shape:
        return new
    return torch.maximum(old[0], new[0]), torch.minimum(old[1], new[1]), old[2] + new[2]


def _counts(old: tuple[Tensor, Tensor, int] | None, new: tuple[Tensor, Tensor, int]) -> tuple[Tensor, Tensor, int]:
    if old is None or old[0].shape != new[0].shape:
        return new
    return old[0] + new[0], old[1] + new[1], old[2] + new[2]
