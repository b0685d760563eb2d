"""Update ratios over a run, as the optimizer rules read them."""
from __future__ import annotations

from gradcheck_doctor.records.recording import OptimizerRecord, Recording
from gradcheck_doctor.rules.flow import updates_by_step


def update_ratios(recording: Recording, *, first: int = 0, last: int | None = None) -> list[float]:
    """Median over the weight matrices of rms(change) / rms(weight), one number an observed step."""
    return [ratio for step, ratio in updates_by_step(recording).items() if step >= first and (last is None or step < last)]


def largest_lr(recording: Recording) -> tuple[float, OptimizerRecord] | None:
    """The largest learning rate in use and its optimizer."""
    pairs = [(g.initial_lr if g.initial_lr is not None and g.initial_lr > g.lr else g.lr, o) for o in recording.optimizers for g in o.groups]
    return max(pairs, key=lambda pair: pair[0], default=None)


def dead_share(recording: Recording) -> float:
    """Largest fraction of dead units in one ReLU layer in the last window."""
    return max((u.dead_fraction for o in recording.operations if (u := o.units_last) is not None), default=0.0)
