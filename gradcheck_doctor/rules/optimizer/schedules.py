"""What a schedule did to the learning rate of a run that it left without one: sized in other steps, taken away, watching the wrong way."""
from __future__ import annotations

import math
from statistics import median

from gradcheck_doctor.records.recording import OptimizerRecord, Recording, SchedulePlan, StepRecord
from gradcheck_doctor.rules.optimizer.readings import Rates, rates
from gradcheck_doctor.rules.progress import adversarial, learned, phase_start, progress

STARVED = 0.03         # mean learning rate over the full one; the lowest of the usual schedules has twice as much
RARE = 5               # steps of the optimizer for each of the schedule's from which on it is stepped once an epoch
WORKING = 0.099        # of the full rate: below it a fall of the loss may end for want of a rate
AT_ONCE = 4            # times as long as the rate was above its half, until which it is next to none where it is taken in large pieces
FELL, STANDS = 0.05, 0.03      # shares of the loss by which it still fell when the rate went, and moves at most afterwards


def starved(recording: Recording, record: OptimizerRecord, *, idle: bool) -> Rates | None:
    """The rates of an optimizer that had next to none for nearly all of the run; for three quarters of one that is `idle`, whose weights stay and loss, too."""
    found = rates(recording, recording.optimizers.index(record))
    if found is None or found.steps < 20 or on_a_plateau(recording, record):
        return None
    gone = idle and not found.rises and found.alive <= 0.25 * found.steps
    return found if found.share < STARVED or gone or _warming(found, record) else None


def _warming(found: Rates, record: OptimizerRecord) -> bool:
    """The run ends early in a warm-up that is stepped once an epoch, or is that of a schedule for many times as many steps."""
    planned = record.plan.planned or 0
    return found.rises and found.last < 0.25 * found.full and found.share < 0.15 and (stepped_rarely(record) or planned > 4 * record.steps)


def on_a_plateau(recording: Recording, record: OptimizerRecord) -> bool:
    """A plateau scheduler that watches the right way lowered the rate as it should: what it watches may stand still where the training loss falls."""
    return bool(record.plan.mode) and stepped_rarely(record) and not watches_wrong_way(record.plan, progress(recording))


def stepped_rarely(record: OptimizerRecord) -> bool:
    """The schedule is stepped once for many steps of the optimizer: once an epoch."""
    return 0 < record.plan.steps * RARE <= record.steps


def sized_in_steps(record: OptimizerRecord) -> bool:
    """It was built for about as many steps as the optimizer makes, and is stepped once an epoch all the same."""
    return stepped_rarely(record) and 0.5 * record.steps <= (record.plan.planned or 0) <= 2.0 * record.steps


def taken_early(recording: Recording, record: OptimizerRecord) -> Rates | None:
    """The rates of an optimizer that lost its rate in the first half of the run while the loss was high and falling, which stood there afterwards."""
    found = rates(recording, number := recording.optimizers.index(record))
    if found is None or found.steps < 40 or found.alive > 0.5 * found.steps or learned(recording) or adversarial(recording) or phase_start(recording):
        return None
    if on_a_plateau(recording, record):
        return None
    wrong = watches_wrong_way(record.plan, progress(recording))
    rows = [row for row in recording.steps if row.optimizer == number and row.lr is not None]
    after = [row.loss for row in rows[found.alive:] if row.loss is not None]
    if len(after) < 20 or not all(row.loss is None or math.isfinite(row.loss) and row.loss > 0 for row in rows):
        return None
    third, full = len(after) // 3, _until(rows, 0.5 * found.full)
    at_once = found.alive <= min(AT_ONCE * full, 0.25 * found.steps)
    falling = _falling(rows[:_until(rows, WORKING * found.full)]) or at_once and _falling(rows[:full])
    stands = abs(median(after[:third]) - median(after[-third:])) <= STANDS * median(after[:third])
    return found if stands and (falling or wrong) else None


def _falling(rows: list[StepRecord]) -> bool:
    """The loss fell over the last half of these steps, by more than its scatter."""
    losses = [row.loss for row in rows if row.loss is not None]
    quarter = len(losses) // 4
    if quarter < 2:
        return False
    before, last = median(losses[-2 * quarter:-quarter]), median(losses[-quarter:])
    scatter = 1.5 * median(abs(v - last) for v in losses[-quarter:])
    return before - last >= FELL * before and before - last > scatter / math.sqrt(quarter)


def _until(rows: list[StepRecord], least: float) -> int:
    """Number of steps until the rate stays below `least`."""
    return max((n for n, row in enumerate(rows, 1) if row.lr is not None and row.lr >= least), default=0)


def watches_wrong_way(plan: SchedulePlan, gone: float | None) -> bool:
    """A plateau scheduler took each improvement for none: under "max" a loss that only fell, under "min" a share of right answers that only rose.

    Args:
        gone: share of the training loss that is gone: where that did not fall either, nothing improved.
    """
    values = plan.watched
    if len(values) < 3 or not all(map(math.isfinite, values)) or gone is None or gone < STANDS:
        return False
    first, last, change = values[0], values[-1], 0.02 * abs(values[0])
    if plan.mode == "max":
        return max(values) <= first and last < first - change
    shares = min(values) >= 0.0 and max(values) <= 1.0
    return plan.mode == "min" and shares and min(values) >= first and last > first + change
