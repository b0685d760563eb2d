"""The tables of a store, and how a record becomes a row of one and comes back."""
from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from gradcheck_doctor.records.exact import decode, encode
from gradcheck_doctor.records.recording import Observed, ParameterStep, StepRecord
from gradcheck_doctor.records.summaries import Summary

VERSION = 1
APPLICATION = 0x47444F43          # "GDOC": what SQLite's header says about whose file this is
MAGIC = b"SQLite format 3\x00"

R = TypeVar("R")


def names(record: type, leave_out: Iterable[str] = ()) -> list[str]:
    """Columns of a record class: its fields."""
    return [f.name for f in fields(record) if f.name not in leave_out]


SUMMARY = names(Summary)
OBSERVED = names(Observed, ("step", "forward", "gradient"))
LAYER_STEP = ["step", "layer", *OBSERVED, *(f"forward_{n}" for n in SUMMARY), *(f"gradient_{n}" for n in SUMMARY)]
PARAMETER_STEP = ["step", "parameter", *names(ParameterStep, ("step",))]
STEP = names(StepRecord)

#: Columns have no type, so that numbers come back as they were. Not-a-number, which SQLite has not, is the text "nan"; NULL is None.
TABLES = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE part (name TEXT PRIMARY KEY, body TEXT) WITHOUT ROWID;
CREATE TABLE layer (id INTEGER PRIMARY KEY, module TEXT, type TEXT, op TEXT, ordinal INTEGER, units TEXT);
CREATE TABLE parameter (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE layer_step ({', '.join(LAYER_STEP)}, PRIMARY KEY (step, layer)) WITHOUT ROWID;
CREATE TABLE parameter_step ({', '.join(PARAMETER_STEP)}, PRIMARY KEY (step, parameter)) WITHOUT ROWID;
CREATE TABLE step ({', '.join(STEP)}, PRIMARY KEY (step)) WITHOUT ROWID;
CREATE TABLE curve (step PRIMARY KEY, loss) WITHOUT ROWID;
CREATE TABLE event (number INTEGER PRIMARY KEY, body TEXT);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
"""


def insert(table: str, columns: Sequence[str]) -> str:
    """Statement that writes one row, over an older one of the same key."""
    return f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


def cell(value: Any) -> Any:
    """A field as SQLite keeps it."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value
    return value if value is None or isinstance(value, (int, str)) else json.dumps(encode(value))


def cells(record: Any, columns: Iterable[str]) -> list[Any]:
    return [None] * len(list(columns)) if record is None else [cell(getattr(record, name)) for name in columns]


def layer_row(layer: int, seen: Observed) -> list[Any]:
    """One row of `layer_step`."""
    return [seen.step, layer, *cells(seen, OBSERVED), *cells(seen.forward, SUMMARY), *cells(seen.gradient, SUMMARY)]


def restored(record: type[R], row: dict[str, Any], prefix: str = "", **more: Any) -> R | None:
    """The record whose fields are the cells of `row` that begin with `prefix`; None when all of them are empty."""
    values = {f.name: _value(str(f.type), row[prefix + f.name]) for f in fields(record)  # type: ignore[arg-type]
              if f.name not in more and prefix + f.name in row}
    if all(v is None for v in values.values()):
        return None
    return record(**values, **more)


def _value(kind: str, raw: Any) -> Any:
    if raw is None:
        return None
    if kind == "bool":
        return bool(raw)
    if "float" in kind and isinstance(raw, str):
        return float(raw)
    return raw if isinstance(raw, (int, float)) or kind.startswith("str") else decode(json.loads(raw))


def observed(row: dict[str, Any]) -> Observed:
    """What `layer_row` was given."""
    forward, gradient = restored(Summary, row, "forward_"), restored(Summary, row, "gradient_")
    found = restored(Observed, row, forward=forward, gradient=gradient)
    assert found is not None
    return found
