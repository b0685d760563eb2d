"""Update ratios over a run, as the optimizer rules read them."""
from __future__ import annotations

from statistics import median

from gradcheck_doctor.records.recording import OptimizerRecord, Recording


def update_ratios(recording: Recording, *, first: int = 0, last: int | None = None) -> list[float]:
    """Median over the weight matrices of rms(change) / rms(weight), one number an observed step."""
    weights = {p.name for p in recording.parameters if p.trainable and len(p.shape) >= 2 and p.rms > 0}
    steps: dict[int, list[float]] = {}
    for name in weights:
        for row in recording.parameter_steps.get(name, ()):
            if row.update_ratio is not None and row.step >= first and (last is None or row.step < last):
                steps.setdefault(row.step, []).append(row.update_ratio)
    return [median(values) for _, values in sorted(steps.items())]


def largest_lr(recording: Recording) -> tuple[float, OptimizerRecord] | None:
    """The largest learning rate in use and its optimizer."""
    pairs = [(g.initial_lr if g.initial_lr is not None and g.initial_lr > g.lr else g.lr, o) for o in recording.optimizers for g in o.groups]
    return max(pairs, key=lambda pair: pair[0], default=None)


def dead_share(recording: Recording) -> float:
    """Largest fraction of dead units in one ReLU layer in the last window."""
    return max((u.dead_fraction for o in recording.operations if (u := o.units_last) is not None), default=0.0)
