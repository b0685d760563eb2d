"""Rows of the layer table as people read them: the calls of a layer in a loop are one row."""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gradcheck_doctor.records.findings import LayerRow

FEW = 3                # calls that keep a row each


@dataclass(frozen=True)
class Row:
    """One or more calls of the same op at the same place: `std` and `gradient` go from the smallest to the largest."""

    first: LayerRow
    op: str
    std: str
    gradient: str
    codes: tuple[str, ...]


def rows_of(layers: Sequence[LayerRow]) -> list[Row]:
    """The table's rows, in the order of the first calls."""
    calls: dict[Any, list[LayerRow]] = {}
    for layer in layers:
        calls.setdefault((layer.module, layer.op, layer.location), []).append(layer)
    many = [group for group in calls.values() if len(group) > FEW]
    alone = [[layer] for group in calls.values() if len(group) <= FEW for layer in group]
    return [_row(group) for group in sorted(many + alone, key=lambda group: group[0].order)]


def _row(group: list[LayerRow]) -> Row:
    first, count = group[0], len(group)
    codes = dict.fromkeys(code for layer in group for code in layer.verdict.split(", ") if code)
    return Row(first, first.op if count == 1 else f"{first.op} x{count}", _range(layer.forward.get("std") for layer in group),
               _range(layer.gradient.get("norm") for layer in group), tuple(codes))


def _range(values: Iterable[Any]) -> str:
    numbers = sorted((float(v) for v in values if v is not None), key=lambda v: (math.isnan(v), v))
    return " to ".join(dict.fromkeys(f"{v:.2g}" for v in (*numbers[:1], *numbers[-1:])))
