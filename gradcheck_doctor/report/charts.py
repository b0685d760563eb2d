"""Where the points of a curve lie in its picture: logarithmic where that shows more, broken where a value is not finite."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 340, 120       # of the area of the curve, in pixels of the picture
DECADES = 1.5                  # between the smallest and the largest value: from there on the axis is logarithmic


@dataclass(frozen=True)
class Chart:
    """A curve as lines of (x, y) in pixels, y downwards; `low` and `high` are the values at the lower and the upper edge."""

    title: str
    lines: tuple[tuple[tuple[float, float], ...], ...]
    low: float
    high: float
    first: float
    last: float
    logarithmic: bool
    broken: float | None       # the first step whose value is not finite

    def points(self, line: Sequence[tuple[float, float]]) -> str:
        """As SVG wants them."""
        return " ".join(f"{x:g},{y:g}" for x, y in line)


def chart_of(title: str, curve: Sequence[tuple[float, float]]) -> Chart | None:
    """The chart of (step, value); None where fewer than two values are finite."""
    finite = [value for _, value in curve if math.isfinite(value)]
    if len(finite) < 2:
        return None
    low, high = min(finite), max(finite)
    logarithmic = low > 0 and math.log10(high) - math.log10(low) > DECADES
    bottom, top = (math.log10(low), math.log10(high)) if logarithmic else (low, high)
    first, last = curve[0][0], curve[-1][0]
    lines: list[list[tuple[float, float]]] = [[]]
    for step, value in curve:
        if not math.isfinite(value):
            lines.append([])
            continue
        x = (step - first) / (last - first) if last > first else 0.0
        level = math.log10(value) if logarithmic else value
        y = (level / 2 - bottom / 2) / (top / 2 - bottom / 2) if top > bottom else 0.5          # halves: a difference may overflow
        lines[-1].append((round(x * WIDTH, 1), round((1 - y) * HEIGHT, 1)))
    broken = next((step for step, value in curve if not math.isfinite(value)), None)
    return Chart(title, tuple(tuple(line) for line in lines if line), low, high, first, last, logarithmic, broken)
