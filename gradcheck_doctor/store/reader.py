"""Reads a store: the recording as it was when the last step was written, and facts about the run."""
from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gradcheck_doctor.errors import ConfigError
from gradcheck_doctor.records.exact import decode
from gradcheck_doctor.records.recording import Operation, ParameterStep, Recording, StepRecord
from gradcheck_doctor.store import schema

MADE_BY = "write one with `doctor run --store FILE train.py`"


@dataclass(frozen=True)
class Stored:
    """A run read back. `meta`: target, arguments, status (running | ended | crashed | interrupted), process, started, ended."""

    recording: Recording
    meta: Mapping[str, Any] = field(default_factory=dict)


def is_store(path: str) -> bool:
    """Whether the file is a store, of any version; False for whatever can't be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(72)
    except OSError:
        return False
    return head.startswith(schema.MAGIC) and int.from_bytes(head[68:72], "big") == schema.APPLICATION


def is_sqlite(path: str) -> bool:
    """Whether the file is a SQLite database, ours or not."""
    try:
        with open(path, "rb") as file:
            return file.read(len(schema.MAGIC)) == schema.MAGIC
    except OSError:
        return False


def read(path: str) -> Stored:
    """The recording in a store, whether its run ended, was killed or is still going on.

    Raises:
        ConfigError: it is no store, damaged, of another version, or nothing was observed.
    """
    with opened(path) as rows:
        meta = _facts(rows)
        parts = {name: decode(json.loads(body)) for name, body in rows.execute("SELECT name, body FROM part")}
        if "rest" not in parts:
            raise ConfigError(f"{path}: nothing was written before the run {meta.get('status', 'ended')}: no optimizer step was observed")
        layer_names = parts["operations"][0]
        seen = _by_layer(rows)
        units = {number: decode(json.loads(text)) for number, text in rows.execute("SELECT id, units FROM layer WHERE units IS NOT NULL")}
        recording = replace(
            parts["rest"], operations=tuple(_operation(o, seen.get(n, ()), units.get(n)) for n, o in zip(layer_names, parts["operations"][1])),
            modules=tuple(replace(m, calls=c) for m, c in zip(parts["modules"], parts["calls"])), parameters=parts["parameters"],
            inputs=parts["inputs"], losses=parts["losses"], optimizers=parts["optimizers"], parameter_steps=_parameter_steps(rows),
            steps=tuple(s for row in _dicts(rows, "SELECT * FROM step ORDER BY step") if (s := schema.restored(StepRecord, row)) is not None),
            events=tuple(decode(json.loads(body)) for (body,) in rows.execute("SELECT body FROM event ORDER BY number")),
            curve=tuple((step, float(loss)) for step, loss in rows.execute("SELECT step, loss FROM curve ORDER BY step")))
    if meta.get("status") == "running":
        recording = _unended(recording)
    return Stored(recording, meta)


def facts(path: str) -> dict[str, Any]:
    """What is known about the run itself; empty when the store can't be read."""
    with contextlib.suppress(ConfigError), opened(path) as rows:
        return _facts(rows)
    return {}


@contextlib.contextmanager
def opened(path: str) -> Iterator[sqlite3.Connection]:
    """The database, to be read only.

    Raises:
        ConfigError: it is missing, no store, damaged, or of another version.
    """
    if not os.path.isfile(path):
        raise ConfigError(f"cannot read {path}: no such file; {MADE_BY}")
    if not is_store(path):
        kind = "a database, but not one of this tool" if is_sqlite(path) else "no store"
        raise ConfigError(f"{path} is {kind}; {MADE_BY}")
    try:
        with contextlib.closing(_connect(path)) as rows:
            version = rows.execute("PRAGMA user_version").fetchone()[0]
            if version != schema.VERSION:
                todo = "upgrade gradcheck-doctor" if version > schema.VERSION else "run the script again with this version"
                raise ConfigError(f"{path} has store version {version}, this version reads {schema.VERSION}; {todo}")
            yield rows
    except sqlite3.Error as error:
        raise ConfigError(f"{path} is damaged: {error}; {MADE_BY}") from error


def _connect(path: str) -> sqlite3.Connection:
    """Read-only; where not even the write-ahead index may be written (a read-only folder), as an unchanging file."""
    address = "file:" + os.path.abspath(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    rows = sqlite3.connect(address + "?mode=ro", uri=True)
    try:
        rows.execute("SELECT count(*) FROM meta")
    except sqlite3.OperationalError:
        rows.close()
        rows = sqlite3.connect(address + "?mode=ro&immutable=1", uri=True)
    return rows


def _dicts(rows: sqlite3.Connection, query: str) -> Iterator[dict[str, Any]]:
    cursor = rows.execute(query)
    columns = [c[0] for c in cursor.description]
    for row in cursor:
        yield dict(zip(columns, row))


def _facts(rows: sqlite3.Connection) -> dict[str, Any]:
    return {key: decode(json.loads(value)) for key, value in rows.execute("SELECT key, value FROM meta")}


def _by_layer(rows: sqlite3.Connection) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for row in _dicts(rows, "SELECT * FROM layer_step ORDER BY step"):
        found.setdefault(row["layer"], []).append(schema.observed(row))
    return found


def _operation(bare: Operation, seen: Any, units: Any) -> Operation:
    total, first, last = units or (None, None, None)
    return replace(bare, observed=tuple(seen), units=total, units_first=first, units_last=last)


def _parameter_steps(rows: sqlite3.Connection) -> dict[str, tuple[ParameterStep, ...]]:
    names = dict(rows.execute("SELECT id, name FROM parameter"))
    found: dict[str, list[ParameterStep]] = {}
    for row in _dicts(rows, "SELECT * FROM parameter_step ORDER BY step"):
        step = schema.restored(ParameterStep, row)
        if step is not None:
            found.setdefault(names[row["parameter"]], []).append(step)
    return {name: tuple(steps) for name, steps in found.items()}


def _unended(recording: Recording) -> Recording:
    """What the light rows know beyond the last observed step."""
    last = max([recording.total_steps, *(s.step + 1 for s in recording.steps[-1:])])
    return replace(recording, total_steps=last, probe={**recording.probe, "stopped": "killed, or still running: the store has no end"})
