"""The losses of the steps: read at once where that waits for nothing, else a few dozen at a time."""
from __future__ import annotations

import torch
from torch import Tensor

from gradcheck_doctor.observe.collector import at_hand

WAITING = 32           # steps whose losses may be on a device at a time


class StepLosses:
    """The losses of the current step, and those of earlier steps that are still on a device."""

    def __init__(self) -> None:
        self._values: list[float] = []
        self._tensors: list[Tensor] = []
        self._waiting: list[tuple[int, Tensor]] = []

    def begin(self) -> None:
        """A new step."""
        if self._values or self._tensors:
            self._values, self._tensors = [], []

    def take(self, loss: Tensor) -> None:
        """A loss of one element, as backward was called on it. The value now: what the loop does to the tensor later is not seen."""
        if at_hand(loss):
            self._values.append(loss.item())
        else:
            self._tensors.append(loss.detach().float().reshape(()).clone())

    def mean(self, scale: float) -> tuple[float | None, Tensor | None]:
        """Mean loss of the step over `scale`: as a number where it is known, else as a tensor; (None, None) when there was no loss."""
        values = self._values
        if values:
            return (values[0] if len(values) == 1 else sum(values) / len(values)) / scale, None
        return None, torch.stack(self._tensors).mean() / scale if self._tensors else None

    def leave(self, loss: Tensor, place: int) -> None:
        """Read `loss` later, for the step record number `place`."""
        self._waiting.append((place, loss))

    @property
    def many(self) -> bool:
        return len(self._waiting) >= WAITING

    def read(self) -> list[tuple[int, float]]:
        """(number of the step record, loss) of everything left, in one copy."""
        waiting, self._waiting = self._waiting, []
        return list(zip((place for place, _ in waiting), torch.stack([t for _, t in waiting]).tolist(), strict=True)) if waiting else []
