"""Which units of an activation are dead or saturated: exact per unit, over as many samples as were seen."""
from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from gradcheck_doctor.observe.collector import Collector
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

    def add(self, output: Tensor, before_update: bool, collector: Collector) -> None:
        """Take in one output, exact over all of it; its numbers arrive when the collector finishes the step."""
        if output.dim() < 2:
            return
        value = output.detach()
        units = value.shape[self.axis]
        samples = value.numel() // units
        if self.bounds is None:
            numbers = torch.stack([_over_samples(value, self.axis, torch.amax), _over_samples(value, self.axis, torch.amin)])
        else:
            lower, upper = self.bounds
            numbers = _over_samples(((value <= lower) | (value >= upper)).float(), self.axis, torch.sum).expand(2, units)
        collector.ask(numbers, lambda seen: self._take(seen, samples, before_update))

    def _take(self, numbers: Tensor, samples: int, before_update: bool) -> None:
        """`numbers`: largest and smallest value of each unit, or twice the number of samples on which it is saturated."""
        seen = (numbers[0], numbers[1], samples)
        merge = _extremes if self.bounds is None else _counts
        self.total = merge(self.total, seen)
        if self.total is seen and self.steps:
            self.steps.clear()                                              # the width changed: a layer was replaced
        if before_update:
            self.first = merge(self.first, seen)
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


def _over_samples(value: Tensor, axis: int, reduce: Callable[..., Tensor]) -> Tensor:
    """`reduce` over every axis but the units': the innermost in memory first, which is much faster than all at once."""
    if axis == -1 or value.dim() == 2:
        return reduce(value.reshape(-1, value.shape[-1]), dim=0)
    return reduce(reduce(value.flatten(2), dim=2), dim=0)


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
