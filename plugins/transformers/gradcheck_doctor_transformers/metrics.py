"""A few numbers for the loggers: the whole run in five curves, nothing per layer."""
from __future__ import annotations

import math
from statistics import median
from typing import Any

from gradcheck_doctor.report.report import Report

HEALTH = {"healthy": 1.0, "watch": 0.5, "sick": 0.0}
RECENT = 8             # observed steps among which the newest update is looked for: late in a training not each compares the weights


def metrics(report: Report) -> dict[str, float]:
    """What a report says, aggregated; only what was seen and is finite.

    Returns:
        doctor/health: 1 healthy, 0.5 watch, 0 sick.
        doctor/findings: warnings and errors.
        doctor/gradient_ratio: smallest over largest gradient norm along the spine, on the last observed step.
        doctor/dead_fraction: largest share of units that are never above 0 in one ReLU layer.
        doctor/update_ratio: median over the weights of rms(change) / rms(weight), on the last observed step that compared them.
    """
    recording = report.recording
    found: dict[str, float | None] = {
        "doctor/health": HEALTH[report.verdict], "doctor/findings": float(sum(f.severity != "info" for f in report.findings)),
        "doctor/gradient_ratio": _gradient_ratio(recording), "doctor/dead_fraction": _dead_fraction(recording),
        "doctor/update_ratio": _update_ratio(recording)}
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


def _gradient_ratio(recording: Any) -> float | None:
    last = max((o.last.step for o in recording.operations if o.last is not None), default=None)
    norms = [o.last.gradient.norm for o in recording.operations
             if o.on_spine and o.category != "loss" and o.last is not None and o.last.step == last and o.last.gradient is not None and o.last.gradient.norm > 0]
    return min(norms) / max(norms) if norms else None


def _dead_fraction(recording: Any) -> float | None:
    return max((u.dead_fraction for o in recording.operations if o.category == "activation" and (u := o.units_last or o.units) is not None), default=None)


def _update_ratio(recording: Any) -> float | None:
    recent = ([row.update_ratio for row in rows[-RECENT:] if row.update_ratio is not None] for rows in recording.parameter_steps.values())
    last = [ratios[-1] for ratios in recent if ratios]
    return median(last) if last else None
