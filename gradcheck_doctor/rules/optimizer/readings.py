"""Update ratios and learning rates over a run, as the optimizer rules read them."""
from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import OptimizerGroup, OptimizerRecord, Recording
from gradcheck_doctor.rules.flow import updates_by_step
from gradcheck_doctor.rules.progress import phase

LINE_SEARCH = ("LBFGS",)       # optimizers that find the length of a step themselves
SEVERAL = 4                    # backward passes a step, from which on they are accumulated
NOTHING = 0.01                 # share of its largest from which on a learning rate is next to none


def update_ratios(recording: Recording, *, first: int = 0, last: int | None = None) -> list[float]:
    """Median over the weight matrices of rms(change) / rms(weight), one number an observed step."""
    return [ratio for step, ratio in updates_by_step(recording).items() if step >= first and (last is None or step < last)]


def stepping(recording: Recording) -> list[OptimizerRecord]:
    """The optimizers of the phase that is judged; all, where the steps do not tell."""
    begin, end = phase(recording)
    numbers = {row.optimizer for row in recording.steps if begin <= row.step < end}
    return [o for n, o in enumerate(recording.optimizers) if n in numbers] or list(recording.optimizers)


def largest_lr(recording: Recording) -> tuple[float, OptimizerRecord] | None:
    """The largest learning rate in use and its optimizer, the peak of a schedule included; nan where none is known (Adafactor's, a loop's own)."""
    begin, end = phase(recording)
    peaks: dict[int, float] = {}
    for row in recording.steps:
        if begin <= row.step < end and row.lr is not None and math.isfinite(row.lr):
            peaks[row.optimizer] = max(peaks.get(row.optimizer, 0.0), row.lr)
    judged = stepping(recording)
    for n, o in enumerate(recording.optimizers):
        if o.plan.peak is not None and peaks.get(n, 0.0) >= 0.99 * o.plan.peak:
            peaks[n] = o.plan.peak                              # steps pass by it, and users look for what they wrote
    pairs = [(max(_configured(g), peaks.get(n, 0.0)), o) for n, o in enumerate(recording.optimizers) if o in judged and o.name not in LINE_SEARCH for g in o.groups]
    return max(pairs, key=lambda pair: pair[0] if math.isfinite(pair[0]) else -1.0, default=None)


def _configured(group: OptimizerGroup) -> float:
    """The rate of a parameter group as it was built, or its last one if that is larger."""
    return group.initial_lr if group.initial_lr is not None and group.initial_lr > group.lr else group.lr


def raised(lr: float, record: OptimizerRecord) -> bool:
    """A schedule took the rate to `lr`, above what the optimizer was built with."""
    built = [g.initial_lr for g in record.groups if g.initial_lr is not None]
    return record.scheduled is not None and bool(built) and lr > 1.5 * max(built)


def lowered(lr: float, record: OptimizerRecord, *factors: float) -> list[Prescription]:
    """Lower rates to try; none where the rate is not known."""
    place, peak = record.built or record.stepped, raised(lr, record)
    return [Prescription("learning-rate", f"Lower the {'peak of the ' if peak else ''}learning rate from {lr:.4g} to {lr / f:.4g}", kind="optimizer", span=place,
                         arguments={"lr": lr / f, "old": lr, **({"peak": True} if peak else {})}) for f in factors] if math.isfinite(lr) else []


def at_rate(name: str, lr: float, *, peak: bool = False) -> str:
    """"SGD with lr 0.1"; the name alone where the rate is not known."""
    return f"{name} with lr {lr:g}{', the peak of its schedule,' if peak else ''}" if math.isfinite(lr) else name


def dead_share(recording: Recording) -> float:
    """Largest fraction of dead units in one ReLU layer in the last window."""
    return max((u.dead_fraction for o in recording.operations if (u := o.units_last) is not None), default=0.0)


def died(recording: Recording) -> float:
    """Largest growth of the fraction of dead units in one ReLU layer, from the first step to the last window."""
    return max((o.units_last.dead_fraction - o.units_first.dead_fraction for o in recording.operations
                if o.units_first is not None and o.units_last is not None), default=0.0)


def summed_batches(recording: Recording) -> int:
    """Number of batches whose gradients each step sums up: the mean loss of each goes into backward undivided. 1 where that can't be told for certain."""
    passes = [row.backwards for row in recording.steps]
    count = int(median(passes)) if passes else 1
    loss = recording.losses[0] if len(recording.losses) == 1 else None
    steps = len({seen.step for o in recording.operations for seen in o.observed})
    called = max((m.calls for m in recording.modules), default=0) / max(1, steps)                # several losses of one forward are no batches
    lines = {e.span for e in recording.events_of("backward")}
    if loss is None or loss.reduction != "mean" or not 0 <= loss.operation < len(recording.operations) or recording.consumers[loss.operation]:
        return 1
    return count if count >= SEVERAL and called >= 0.9 * count and len(lines) == 1 else 1


@dataclass(frozen=True)
class Rates:
    """The learning rate of the first parameter group over a run: what it could have been, how it began and ended, its mean as a share of that."""

    full: float
    first: float
    last: float
    share: float
    alive: int             # steps until it stays below a hundredth of `full`
    steps: int

    @property
    def rises(self) -> bool:
        """The run ends in the warm-up."""
        return self.last > self.first

    @property
    def squared(self) -> bool:
        """The schedule began at the full rate times itself: what it multiplies the rate by is a rate."""
        return self.full < 0.1 and abs(self.first - self.full**2) <= 0.01 * self.full**2


def rates(recording: Recording, number: int) -> Rates | None:
    """Learning rates that the steps of optimizer `number` were made with; None where they were not seen."""
    group = recording.optimizers[number].groups[0] if recording.optimizers[number].groups else None
    seen = [row.lr for row in recording.steps if row.optimizer == number and row.lr is not None]
    full = max([*seen, group.initial_lr or 0.0, recording.optimizers[number].plan.peak or 0.0], default=0.0) if group is not None else 0.0
    if not seen or full <= 0.0:
        return None
    alive = max((n for n, rate in enumerate(seen, 1) if rate >= NOTHING * full), default=0)
    return Rates(full, seen[0], seen[-1], sum(seen) / len(seen) / full, alive, len(seen))
