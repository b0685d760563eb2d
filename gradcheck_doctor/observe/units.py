"""Which units of an activation are dead or saturated: exact per unit, over as many samples as were seen."""
from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from gradcheck_doctor.observe.collector import Collector, at_hand
from gradcheck_doctor.records.summaries import Units

#: Output beyond which the derivative of a bounded activation is below 1 % of its largest: tanh at |x| = 2.993, sigmoid at |x| = 4.585.
SATURATION = {"tanh": (-0.99500, 0.99500), "sigmoid": (0.01010, 0.98990), "hardtanh": (-0.99999, 0.99999), "softsign": (-0.9, 0.9),
              "hardsigmoid": (1e-5, 0.99999)}
RELU_LIKE = frozenset({"relu", "relu6", "threshold", "softshrink", "hardshrink"})
SHARE = 0.95          # of the samples on which a unit must be saturated
WINDOW = 8            # observed steps of a window; `units_last` covers the newest and the one before it
SHORTEST, ENOUGH = 4, 1000      # fewer steps are a window where they hold that many samples
FEW = 128             # samples (and positions) of a unit that are looked at on a step that is not seen in full
SHORT = 64            # positions of a unit that are reduced after its samples where they are fewer: a sum of rows is faster than sums of short rows
Seen = tuple[Tensor, Tensor, int]


class UnitActivity:
    """Running activity of the units of one activation site.

    Windows follow each other. Within one, a ReLU unit that was seen above 0 needs no further look: only the others are read again, over all samples
    looked at, so that what is said of a dead unit stays exact while most of the reading is spared.
    """

    def __init__(self, op: str, axis: int) -> None:
        self.bounds = SATURATION.get(op)
        self.axis = axis
        self._merge = _extremes if self.bounds is None else _counts
        self._total: Seen | None = None                     # up to the window
        self._first: Seen | None = None
        self._before: Seen | None = None                    # the window before this one
        self._window: Seen | None = None
        self._steps = 0                                     # taken into the window
        self._turn = 0                                      # calls: each looks at other samples and positions
        self._silent: Tensor | None = None                  # units that the window's first step did not show above 0; None: look at all
        self._loudest: Tensor | None = None                 # their largest value since, or that of all units

    def add(self, output: Tensor, before_update: bool, collector: Collector, exact: bool = True) -> None:
        """Take in one output, without `exact` at most about `FEW` samples of it; its numbers arrive when the collector finishes the step, or at once."""
        if output.dim() < 2:
            return
        units = output.shape[self.axis]
        if self._steps >= WINDOW or self._steps >= SHORTEST and self._window is not None and self._window[2] >= ENOUGH:
            self._close()
        silent = self._silent if self._window is not None and len(self._window[0]) == units and not before_update else None
        if silent is not None and not len(silent) and self._window is not None:     # nothing left to find out in this window
            seen = output.numel() // units
            self._window = (*self._window[:2], self._window[2] + (seen if exact else min(seen, FEW)))
            self._steps += 1
            return
        value = output.detach() if output.requires_grad and torch.is_grad_enabled() else output
        value = value if exact else _few(value, self.axis, self._turn)
        self._turn += 1
        samples, near = value.numel() // units, at_hand(value)
        if self.bounds is not None:
            lower, upper = self.bounds
            numbers = _over_samples(((value <= lower) | (value >= upper)).float(), self.axis, torch.sum).expand(2, units)
        elif silent is not None and self._window is not None:
            self._again(value, silent)
            self._window = (*self._window[:2], self._window[2] + samples)
            self._steps += 1
            return
        else:
            numbers = torch.stack([_over_samples(value, self.axis, torch.amax), _over_samples(value, self.axis, torch.amin)])
        collector.ask(numbers, lambda seen: self._take((seen[0], seen[1], samples), before_update, near))

    def _again(self, value: Tensor, silent: Tensor) -> None:
        """A later step of the window: only the units that were silent so far. Where they are many, reading all of them is faster than picking."""
        picked = value if len(silent) * 8 > value.shape[self.axis] else value.index_select(self.axis, silent)
        loudest = _over_samples(picked, self.axis, torch.amax)
        self._loudest = loudest if self._loudest is None else torch.maximum(self._loudest, loudest, out=self._loudest)

    def _take(self, seen: Seen, before_update: bool, near: bool) -> None:
        """`seen`: largest and smallest value of each unit, or twice the number of samples on which it is saturated."""
        known = self._window or self._total
        if known is not None and known[0].shape != seen[0].shape:           # the width changed: a layer was replaced
            self._total = self._before = self._window = self._loudest = None
            self._steps = 0
        if before_update:
            self._first = self._merge(self._first, seen)
        self._window = self._merge(self._so_far(), seen)
        self._steps += 1
        self._silent = self._loudest = None
        if self.bounds is None and near and not before_update:
            self._silent = (self._window[0] <= 0).nonzero().flatten()

    def _so_far(self) -> Seen | None:
        """The window with what its later steps showed."""
        if self._window is None or self._loudest is None or self._silent is None:
            return self._window
        high, low, samples = self._window
        loudest = self._loudest if len(self._loudest) == len(self._silent) else self._loudest[self._silent]
        return high.index_copy(0, self._silent, torch.maximum(high[self._silent], loudest.float())), low, samples

    def _close(self) -> None:
        """The window is full: the next step begins another."""
        self._before = self._so_far()
        if self._before is not None:
            self._total = self._merge(self._total, self._before)
        self._window = self._silent = self._loudest = None
        self._steps = 0

    def extremes(self) -> tuple[Seen | None, Seen | None, Seen | None]:
        """What `result` is made from, as tensors over the units: everything, before the first update, this window and the one before it."""
        window = self._so_far()
        if window is None:
            return self._total, self._first, self._before
        return self._merge(self._total, window), self._first, self._merge(self._before, window)

    def result(self) -> tuple[Units | None, Units | None, Units | None]:
        """Over everything, before the first update, and over this window and the one before it."""
        total, first, last = self.extremes()
        return self._units(total), self._units(first), self._units(last)

    def _units(self, seen: Seen | None) -> Units | None:
        if seen is None:
            return None
        high, low, samples = seen
        if self.bounds is None:
            chosen = high <= 0
            return Units(len(high), samples, dead=int(chosen.sum()), always_on=int((low > 0).sum()), indices=_indices(chosen))
        chosen = high >= SHARE * samples
        return Units(len(high), samples, saturated=int(chosen.sum()), indices=_indices(chosen), flat_share=float(high.sum()) / max(len(high) * samples, 1))


def _few(value: Tensor, axis: int, turn: int) -> Tensor:
    """About `FEW` samples (and positions) of every unit, evenly spaced; all of them where they are less than twice as many.

    They move on with each turn: a unit may be at work in the middle of a picture only.
    """
    samples = value.numel() // value.shape[axis]
    if samples < 2 * FEW:
        return value
    flat = value.reshape(-1, value.shape[-1]) if axis == -1 or value.dim() == 2 else value.flatten(2)
    step = min(samples // FEW, flat.shape[0] if flat.dim() == 2 else flat.shape[2])
    first = turn * _stride(step) % step
    return flat[first::step] if flat.dim() == 2 else flat[..., first::step]


@functools.cache
def _stride(step: int) -> int:
    """By how much to move on: each place has its turn, none twice before all had it."""
    return next(k for k in range(max(1, round(0.618 * step)), step + 2) if math.gcd(k, step) == 1)


def _over_samples(value: Tensor, axis: int, reduce: Callable[..., Tensor]) -> Tensor:
    """`reduce` over every axis but the units': one at a time, the longer run of memory first, which is much faster than all at once."""
    if value.dim() == 2:
        return reduce(value, dim=0)
    if axis == -1:
        return reduce(value.reshape(-1, value.shape[-1]), dim=0)
    positions = value.flatten(2)
    return reduce(reduce(positions, dim=0), dim=1) if positions.shape[2] < SHORT else reduce(reduce(positions, dim=2), dim=0)


def _indices(chosen: Tensor) -> tuple[int, ...]:
    return tuple(chosen.nonzero().flatten()[:64].tolist())


def _extremes(old: Seen | None, new: Seen) -> Seen:
    if old is None or old[0].shape != new[0].shape:
        return new
    return torch.maximum(old[0], new[0]), torch.minimum(old[1], new[1]), old[2] + new[2]


def _counts(old: Seen | None, new: Seen) -> Seen:
    if old is None or old[0].shape != new[0].shape:
        return new
    return old[0] + new[0], old[1] + new[1], old[2] + new[2]
