"""What is known of every step, observed or not: loss, gradient norm, learning rate."""
from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import replace

from gradcheck_doctor.observe.step_losses import StepLosses
from gradcheck_doctor.records.lazy import Lazy
from gradcheck_doctor.records.recording import StepRecord


class StepLog:
    """One row a step, and the curve of the losses; a loss that is still on a device comes to both later.

    Attributes:
        finite: no loss that was not finite has been seen.
    """

    def __init__(self) -> None:
        self.losses = StepLosses()
        self.rows = Lazy(_row)
        self.curve: list[tuple[int, float]] = []
        self.finite = True

    def ended(self, step: int, scale: float, norm: float | None, rate: float | None, backwards: int, stale: bool, optimizer: int, *, observed: bool) -> None:
        """Keep what is known of a step: the mean of the losses taken since it began over the loss `scale`, and the rest as given."""
        loss, late = self.losses.mean(scale)
        if loss is not None or late is not None or observed or norm is not None:
            if late is not None:
                self.losses.leave(late, len(self.rows))
            self.rows.add(step, loss, norm, rate, backwards, stale, optimizer)
            if loss is not None:
                self._note(step, loss)
        if observed or self.losses.many:
            self.settle()

    def settle(self) -> None:
        """Fill in the losses that were still on a device."""
        for place, value in self.losses.read():
            record = replace(self.rows[place], loss=value)
            self.rows.put(place, record)
            self._note(record.step, value)

    def _note(self, step: int, value: float) -> None:
        self.curve.append((step, value))
        self.finite = self.finite and math.isfinite(value)

    def since(self, step: int) -> tuple[tuple[StepRecord, ...], tuple[tuple[int, float], ...]]:
        """(rows, curve) of the steps after `step`."""
        self.settle()
        return (tuple(self.rows[bisect_right(self.rows, step, key=lambda row: row.step):]),
                tuple(self.curve[bisect_right(self.curve, step, key=lambda point: point[0]):]))


def _row(step: int, loss: float | None, norm: float | None, rate: float | None, backwards: int, stale: bool, optimizer: int) -> StepRecord:
    return StepRecord(step=step, loss=loss, grad_norm=norm, lr=rate, backwards=backwards, stale_gradient=stale, optimizer=optimizer)
