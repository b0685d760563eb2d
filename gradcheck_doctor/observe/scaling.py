"""Steps that a GradScaler was asked for, and those it left out because the gradients were not finite."""
from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from torch import optim
from torch.amp import GradScaler

from gradcheck_doctor.observe.provenance import user_span
from gradcheck_doctor.records.sites import Span

GROWING_IN = 200       # first steps, on which the scale is still finding its size


class ScalerSteps:
    """Wraps `GradScaler.step` while attached, as it is the only sign of a step that is left out.

    Args:
        taken: how many optimizer steps there were so far.
        watched: whether an optimizer's steps are counted in `taken`.
        scale: told the loss scale just before each step, which the loss and the gradients of the step carry.
    """

    def __init__(self, taken: Callable[[], int], watched: Callable[[optim.Optimizer], bool], scale: Callable[[float], None]) -> None:
        self.taken, self.watched, self.scale = taken, watched, scale
        self.asked = self.skipped = self.late_asked = self.late_skipped = self.skipped_in_a_row = 0
        self.span: Span | None = None
        self._original: Any = None

    def attach(self) -> None:
        if self._original is not None:
            return
        original = self._original = GradScaler.step

        @functools.wraps(original)
        def step(scaler: GradScaler, optimizer: optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
            before, ours = self.taken(), self.watched(optimizer)
            if self.span is None:
                self.span = user_span(sys._getframe(1))
            if ours:
                self.scale(scaler.get_scale())
            result = original(scaler, optimizer, *args, **kwargs)
            if ours:
                self._count(self.taken() == before)
            return result

        GradScaler.step = step  # type: ignore[method-assign, assignment]

    def detach(self) -> None:
        if self._original is not None:
            GradScaler.step = self._original  # type: ignore[method-assign]
            self._original = None

    def _count(self, skipped: bool) -> None:
        self.asked += 1
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if self.asked > GROWING_IN:
            self.late_asked += 1
            self.late_skipped += skipped

    def notes(self) -> dict[str, Any]:
        """`notes["scaler"]`, where one was used."""
        if not self.asked:
            return {}
        return {"scaler": {"asked": self.asked, "skipped": self.skipped, "late_asked": self.late_asked, "late_skipped": self.late_skipped,
                           "skipped_in_a_row": self.skipped_in_a_row, "span": self.span}}
