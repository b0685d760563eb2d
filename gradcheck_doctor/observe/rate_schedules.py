"""Where a learning-rate scheduler was built and where it is stepped."""
from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LRScheduler

from gradcheck_doctor.records.sites import Span

if TYPE_CHECKING:
    from gradcheck_doctor.observe.provenance import ConstructionLog


@dataclass
class RateSchedule:
    """The scheduler of one optimizer: its constructor, and the user's call of `step()`, None where a library makes it."""

    built: Span | None = None
    stepped: Span | None = None


def watch_schedulers(log: ConstructionLog) -> list[tuple[Any, str, Any]]:
    """Note schedulers in `log.schedules`; what was patched."""
    from gradcheck_doctor.observe.provenance import construction_span, is_user_file, span_at

    original_init, original_step = LRScheduler.__init__, LRScheduler.step

    @functools.wraps(original_init)
    def init(self: LRScheduler, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        original_init(self, optimizer, *args, **kwargs)
        log.schedules[optimizer] = RateSchedule(construction_span(sys._getframe(1), self))

    @functools.wraps(original_step)
    def step(self: LRScheduler, *args: Any, **kwargs: Any) -> None:
        known = log.schedules.get(self.optimizer)
        if known is not None and known.stepped is None:
            frame = sys._getframe(1)
            if is_user_file(frame.f_code.co_filename):
                known.stepped = span_at(frame.f_code, frame.f_lasti)
        original_step(self, *args, **kwargs)

    LRScheduler.__init__, LRScheduler.step = init, step  # type: ignore[method-assign, assignment]
    return [(LRScheduler, "__init__", original_init), (LRScheduler, "step", original_step)]
