"""Where a learning-rate scheduler was built, where and how often it is stepped, and what it was built for."""
from __future__ import annotations

import functools
import sys
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from gradcheck_doctor.records.recording import SchedulePlan
from gradcheck_doctor.records.sites import Span

if TYPE_CHECKING:
    from gradcheck_doctor.observe.provenance import ConstructionLog

KEPT = 300             # values that a plateau scheduler was stepped with


@dataclass
class RateSchedule:
    """The scheduler of one optimizer: its constructor, and the user's call of `step()`, None where a library makes it."""

    built: Span | None = None
    stepped: Span | None = None
    scheduler: weakref.ref[LRScheduler] | None = None       # the last one built for it
    steps: int = 0
    planned: int | None = None
    peak: float | None = None
    mode: str = ""
    watched: list[float] = field(default_factory=list)

    def plan(self) -> SchedulePlan:
        return SchedulePlan(self.steps, self.planned, self.peak, self.mode, tuple(self.watched))


def watch_schedulers(log: ConstructionLog) -> list[tuple[Any, str, Any]]:
    """Note schedulers in `log.schedules`; what was patched."""
    return [patched for kind in (LRScheduler, ReduceLROnPlateau) for patched in _watch(log, kind)]


def _watch(log: ConstructionLog, kind: type[LRScheduler]) -> list[tuple[Any, str, Any]]:
    from gradcheck_doctor.observe.provenance import construction_span, is_user_file, span_at

    original_init, original_step = kind.__init__, kind.step

    @functools.wraps(original_init)
    def init(self: LRScheduler, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        original_init(self, optimizer, *args, **kwargs)
        log.schedules[optimizer] = _built(self, construction_span(sys._getframe(1), self))

    @functools.wraps(original_step)
    def step(self: LRScheduler, *args: Any, **kwargs: Any) -> None:
        known = log.schedules.get(self.optimizer)
        if known is not None:
            if known.stepped is None:
                frame = sys._getframe(1)
                if is_user_file(frame.f_code.co_filename):
                    known.stepped = span_at(frame.f_code, frame.f_lasti)
            if known.scheduler is not None and known.scheduler() is self:
                known.steps += 1
                if known.mode and len(known.watched) < KEPT:
                    _note(known, args[0] if args else kwargs.get("metrics"))
        original_step(self, *args, **kwargs)

    kind.__init__, kind.step = init, step  # type: ignore[method-assign, assignment]
    return [(kind, "__init__", original_init), (kind, "step", original_step)]


def _built(scheduler: LRScheduler, span: Span | None) -> RateSchedule:
    found = RateSchedule(span, scheduler=weakref.ref(scheduler))
    if isinstance(scheduler, OneCycleLR):
        found.planned, found.peak = int(scheduler.total_steps), float(scheduler.optimizer.param_groups[0]["max_lr"])
    if isinstance(scheduler, ReduceLROnPlateau):
        found.mode = scheduler.mode
    return found


def _note(known: RateSchedule, value: Any) -> None:
    try:
        known.watched.append(float(value.detach() if isinstance(value, Tensor) else value))      # a warning of torch is the scheduler's to give
    except (TypeError, ValueError):
        known.mode = ""                                     # the scheduler will say what is wrong with it
