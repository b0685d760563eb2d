"""Writes a run to SQLite as it happens: what is known of the model when it changes, one set of rows for each observed step.

Every write is one transaction in write-ahead mode, so whoever kills the process loses at most the step being written.
A store that can't be written is given up with one message; training never notices.
"""
from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gradcheck_doctor.errors import ConfigError
from gradcheck_doctor.records.exact import encode
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.store import schema

SECONDS = 5.0           # steps between observed ones reach the disk at least this often, while steps end
FIRST, LAST = 8, 16     # observed steps at both ends that are thinned last


@dataclass(frozen=True)
class Limits:
    """How much is kept; beyond it every second of the older steps goes."""

    steps: int = 512             # observed steps
    rows: int = 1_000_000        # of layers and parameters: about 200 bytes each
    points: int = 100_000        # of the loss curve


class Store:
    """A file being written.

    Args:
        path: replaced when it is a store of an earlier run that has ended.
        meta: facts about the run: target, arguments, script, ...
        say: takes the one message when writing fails.
        limits: how much is kept.
        probe: facts for the recording's `probe`.

    Raises:
        ConfigError: `path` is some other file, or the store of a run that is still going on.
    """

    def __init__(self, path: str, meta: Mapping[str, Any], say: Callable[[str], None], limits: Limits | None = None,
                 probe: Mapping[str, Any] | None = None) -> None:
        self.path, self.say, self.limits, self.probe = path, say, limits or Limits(), probe or {}
        self._process = os.getpid()
        self._layers: dict[tuple[Any, ...], int] = {}
        self._parameters: dict[str, int] = {}
        self._parts: dict[str, Any] = {}
        self._observed: list[int] = []
        self._rows = self._points = 0
        self._seen = self._light = -1
        self._stale = False
        self._written = time.monotonic()
        self._connection: sqlite3.Connection | None = None
        _refuse_foreign(path)
        with self._giving_up():
            for name in (path, path + "-wal", path + "-shm", path + "-journal"):
                if os.path.isfile(name):                              # never a device
                    os.unlink(name)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
            self._connection.executescript(schema.TABLES + "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")
            with self._transaction() as run:
                facts = {**meta, "status": "running", "process": os.getpid(), "started": time.time()}
                run.executemany(schema.insert("meta", ["key", "value"]), [(k, json.dumps(encode(v))) for k, v in facts.items()])

    @property
    def open(self) -> bool:
        """False once writing failed or ended, and in a forked child."""
        return self._connection is not None and os.getpid() == self._process

    def write(self, take: Callable[[int], Recording]) -> None:
        """Write an observed step; `take(since)` gives the recording with its series from after step `since`."""
        if not self.open:
            return
        with self._giving_up(), self._transaction() as run:
            recording = take(self._seen)
            if self._stale or self._renamed(recording):
                recording = take(-1)
                self._forget(run)
            self._name(run, recording)
            self._keep_parts(run, recording)
            self._keep_series(run, recording)
            self._keep_light(run, recording.steps, recording.curve)
            self._thin(run)

    def write_light(self, take: Callable[[int], tuple[Any, Any]]) -> None:
        """Called after every step: writes loss and gradient norm of the steps between observed ones, every few seconds."""
        if time.monotonic() - self._written >= SECONDS and self.open:
            with self._giving_up(), self._transaction() as run:
                self._keep_light(run, *take(self._light))

    # -- as a monitor calls it ------------------------------------------------------------------------------------------------------------
    def step(self, monitor: Any) -> None:
        """An optimizer step ended."""
        self.write_light(monitor.steps.since)

    def observed(self, monitor: Any) -> None:
        """An observed step ended."""
        self.write(lambda since: monitor.recording("run", since=since, **self.probe))

    def ended(self, recording: Recording, status: str, merged: bool = False) -> None:
        """The run ended with `status`; with figures of other ranks `merged` into it, every step is written again."""
        self._stale = self._stale or merged
        self.write(lambda since: _after(recording, since))
        self.close(status)

    def close(self, status: str, **meta: Any) -> None:
        """The run ended: leave one plain file."""
        if not self.open:
            return
        with self._giving_up():
            with self._transaction() as run:
                facts = {**meta, "status": status, "ended": time.time()}
                run.executemany(schema.insert("meta", ["key", "value"]), [(k, json.dumps(encode(v))) for k, v in facts.items()])
            with contextlib.suppress(sqlite3.Error):               # somebody is reading: the write-ahead file stays beside it
                if self._connection is not None:
                    self._connection.execute("PRAGMA journal_mode = DELETE")
        self._drop()

    # -- failing ------------------------------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _giving_up(self) -> Any:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self._drop()
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            self.say(f"the store {self.path} can't be written ({reason}); training goes on without it")

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Any:
        connection = self._connection
        assert connection is not None
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            self._stale = True                   # what we think is in the file is not: begin again
            raise
        self._written = time.monotonic()

    # -- the model ----------------------------------------------------------------------------------------------------------------------
    def _renamed(self, recording: Recording) -> bool:
        """Names that were written are gone: a second model gave the first one a prefix, or a layer was replaced."""
        return not (self._layers.keys() <= {_key(o) for o in recording.operations} and self._parameters.keys() <= {p.name for p in recording.parameters})

    def _forget(self, run: sqlite3.Connection) -> None:
        for table in ("layer", "parameter", "layer_step", "parameter_step", "step", "curve", "event"):
            run.execute(f"DELETE FROM {table}")
        self._layers, self._parameters, self._parts, self._observed = {}, {}, {}, []
        self._rows = self._points = 0
        self._light = -1
        self._stale = False

    def _name(self, run: sqlite3.Connection, recording: Recording) -> None:
        """Numbers for operations and parameters not yet known; activity of the units of all that have some."""
        new = [o for o in recording.operations if _key(o) not in self._layers]
        for operation in new:
            self._layers[_key(operation)] = len(self._layers)
        run.executemany(schema.insert("layer", ["id", "module", "type", "op", "ordinal"]), [(self._layers[_key(o)], *_key(o)) for o in new])
        units = [(json.dumps(encode((o.units, o.units_first, o.units_last))), self._layers[_key(o)]) for o in recording.operations if o.units is not None]
        run.executemany("UPDATE layer SET units = ? WHERE id = ?", units)
        fresh = [p.name for p in recording.parameters if p.name not in self._parameters]
        for name in fresh:
            self._parameters[name] = len(self._parameters)
        run.executemany(schema.insert("parameter", ["id", "name"]), [(self._parameters[n], n) for n in fresh])

    def _keep_parts(self, run: sqlite3.Connection, recording: Recording) -> None:
        """What has no series, in parts; a part is written when it changed."""
        bare = tuple(replace(o, observed=(), units=None, units_first=None, units_last=None) for o in recording.operations)
        parts = {"operations": (tuple(self._layers[_key(o)] for o in bare), bare), "parameters": recording.parameters,
                 "modules": tuple(replace(m, calls=0) for m in recording.modules), "calls": tuple(m.calls for m in recording.modules),
                 "inputs": recording.inputs, "losses": recording.losses, "optimizers": recording.optimizers,
                 "rest": replace(recording, operations=(), parameters=(), modules=(), inputs=(), losses=(), optimizers=(), steps=(), parameter_steps={},
                                 events=(), curve=())}
        changed = {name: part for name, part in parts.items() if self._parts.get(name) != part}
        run.executemany(schema.insert("part", ["name", "body"]), [(name, json.dumps(encode(part))) for name, part in changed.items()])
        self._parts.update(changed)

    # -- the series ---------------------------------------------------------------------------------------------------------------------
    def _keep_series(self, run: sqlite3.Connection, recording: Recording) -> None:
        layers = [schema.layer_row(self._layers[_key(o)], seen) for o in recording.operations for seen in o.observed]
        columns = schema.PARAMETER_STEP[2:]
        parameters = [[row.step, self._parameters[name], *schema.cells(row, columns)] for name, rows in recording.parameter_steps.items()
                      for row in rows if name in self._parameters]
        run.executemany(schema.insert("layer_step", schema.LAYER_STEP), layers)
        run.executemany(schema.insert("parameter_step", schema.PARAMETER_STEP), parameters)
        run.executemany(schema.insert("event", ["number", "body"]), [(e.order, json.dumps(encode(e))) for e in recording.events])
        steps = sorted({row[0] for row in layers} | {row[0] for row in parameters})
        self._observed += [s for s in steps if not self._observed or s > self._observed[-1]]
        self._rows += len(layers) + len(parameters)
        self._seen = max(self._seen, recording.total_steps - 1)

    def _keep_light(self, run: sqlite3.Connection, steps: Iterable[Any], curve: Iterable[tuple[int, float]]) -> None:
        rows = [schema.cells(s, schema.STEP) for s in steps if s.step > self._light]
        points = [(step, schema.cell(loss)) for step, loss in curve if step > self._light]
        run.executemany(schema.insert("step", schema.STEP), rows)
        run.executemany(schema.insert("curve", ["step", "loss"]), points)
        self._points += max(len(rows), len(points))
        self._light = max([self._light, *(r[schema.STEP.index("step")] for r in rows[-1:]), *(p[0] for p in points[-1:])])

    # -- staying small ------------------------------------------------------------------------------------------------------------------
    def _thin(self, run: sqlite3.Connection) -> None:
        while self._rows > self.limits.rows or len(self._observed) > self.limits.steps:
            gone = _every_second(self._observed)
            if not gone:
                break
            for table in ("layer_step", "parameter_step"):
                self._rows -= sum(run.execute(f"DELETE FROM {table} WHERE step = ?", (step,)).rowcount for step in gone)
            left = set(gone)
            self._observed = [s for s in self._observed if s not in left]
        if self._points > self.limits.points:
            self._points = max(_halve(run, "step", set(self._observed)), _halve(run, "curve", set(self._observed)))


def _after(recording: Recording, since: int) -> Recording:
    """The recording with its series from after step `since`."""
    return replace(
        recording, operations=tuple(replace(o, observed=tuple(seen for seen in o.observed if seen.step > since)) for o in recording.operations),
        parameter_steps={name: tuple(row for row in rows if row.step > since) for name, rows in recording.parameter_steps.items()},
        steps=tuple(s for s in recording.steps if s.step > since), curve=tuple(p for p in recording.curve if p[0] > since),
        events=tuple(e for e in recording.events if e.step > since))


def _key(operation: Operation) -> tuple[Any, ...]:
    """What makes an operation the same one in a later recording: its place in the list may change."""
    return (operation.module, operation.module_type, operation.op, operation.ordinal)


def _every_second(steps: list[int]) -> list[int]:
    """Those to drop, in pairs (two optimizers take turns); the ends stay."""
    first, last = (FIRST, LAST) if len(steps) > 2 * (FIRST + LAST) else (1, 2)
    return [s for place, s in enumerate(steps[first: len(steps) - last]) if place // 2 % 2 == 0]


def _halve(run: sqlite3.Connection, table: str, keep: set[int]) -> int:
    """Drop every second pair of the older half; returns how many rows are left."""
    steps = [row[0] for row in run.execute(f"SELECT step FROM {table} ORDER BY step")]
    gone = [(s,) for place, s in enumerate(steps[FIRST: len(steps) // 2]) if place // 2 % 2 == 0 and s not in keep]
    run.executemany(f"DELETE FROM {table} WHERE step = ?", gone)
    return len(steps) - len(gone)


def _refuse_foreign(path: str) -> None:
    """Never replace a file that is no store, nor the store of a run that is still going on.

    Raises:
        ConfigError: it is one of these.
    """
    from gradcheck_doctor.store.reader import facts, is_store

    if os.path.isdir(path) or os.path.isfile(path) and os.path.getsize(path) and not is_store(path):
        kind = "a folder" if os.path.isdir(path) else "another file"
        raise ConfigError(f"--store {path}: this is {kind}, which is not overwritten; name a new file, such as run.db")
    if not os.path.isfile(path) or not os.path.getsize(path):
        return                                   # nothing there, or a device: writing to it will say what is wrong
    known = facts(path)
    if known.get("status") == "running" and known.get("process") != os.getpid() and _alive(known.get("process")):
        raise ConfigError(f"--store {path}: process {known['process']} is still writing a run to it; name another file")


def _alive(process: Any) -> bool:
    try:
        os.kill(int(process), 0)
    except (OSError, TypeError, ValueError):
        return False
    return True
