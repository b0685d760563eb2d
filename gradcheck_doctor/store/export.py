"""A store as one table for spreadsheets and data frames: a row for each observed step and layer, step and parameter, and each step."""
from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from typing import Any

from gradcheck_doctor.errors import ConfigError
from gradcheck_doctor.store import schema
from gradcheck_doctor.store.reader import opened

_FIGURES = {"step": [c for c in schema.STEP if c != "step"], "layer": schema.LAYER_STEP[2:], "parameter": schema.PARAMETER_STEP[2:]}
COLUMNS = ["step", "kind", "name", "op", "ordinal", *dict.fromkeys(c for columns in _FIGURES.values() for c in columns)]
_QUERIES = {
    "step": "SELECT * FROM step ORDER BY step",
    "layer": "SELECT layer.module AS name, layer.op, layer.ordinal, layer_step.* FROM layer_step JOIN layer ON layer.id = layer ORDER BY step, layer",
    "parameter": "SELECT parameter.name AS name, parameter_step.* FROM parameter_step JOIN parameter ON parameter.id = parameter ORDER BY step, parameter"}
BATCH = 20_000


def export(path: str, output: str) -> int:
    """Write the figures in the store `path` to `output`, .csv or .parquet; returns the number of rows.

    Raises:
        ConfigError: another suffix, pyarrow is missing, or one of the files can't be read or written.
    """
    write = {".csv": _csv, ".parquet": _parquet}.get(os.path.splitext(output)[1].lower())
    if write is None:
        raise ConfigError(f"--export {output}: the name must end in .csv or .parquet")
    try:
        return write(_rows(path), output)
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror or error}") from error


def _rows(path: str) -> Iterator[dict[str, Any]]:
    with opened(path) as rows:
        for kind, query in _QUERIES.items():
            cursor = rows.execute(query)
            names = [c[0] for c in cursor.description]
            for row in cursor:
                yield {"kind": kind, **dict(zip(names, row))}


def _csv(rows: Iterator[dict[str, Any]], output: str) -> int:
    batch = list(islice(rows, BATCH))                   # a store that can't be read is said before a file is made
    count = 0
    with open(output, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        while batch:
            table.writerows(batch)
            count += len(batch)
            batch = list(islice(rows, BATCH))
    return count


def _parquet(rows: Iterator[dict[str, Any]], output: str) -> int:
    try:
        pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")       # the optional extra
    except ImportError as error:
        raise ConfigError("Parquet needs pyarrow: pip install 'gradcheck-doctor[parquet]'; or write .csv") from error
    kinds = _kinds()
    table = pyarrow.schema([(c, getattr(pyarrow, kinds[c])()) for c in COLUMNS])
    batch = list(islice(rows, BATCH))
    count = 0
    with parquet.ParquetWriter(output, table) as file:
        while batch:
            columns = {c: [_typed(kinds[c], row.get(c)) for row in batch] for c in COLUMNS}
            file.write_table(pyarrow.table(columns, schema=table))
            count += len(batch)
            batch = list(islice(rows, BATCH))
    return count


def _kinds() -> dict[str, str]:
    """Arrow's name of each column's type, from the fields of the records."""
    from dataclasses import fields

    from gradcheck_doctor.records.recording import Observed, ParameterStep, StepRecord
    from gradcheck_doctor.records.summaries import Summary

    words = {"step": "int", "kind": "str", "name": "str", "op": "str", "ordinal": "int"}
    for record in (StepRecord, ParameterStep, Observed):
        words |= {f.name: str(f.type) for f in fields(record)}
    words |= {prefix + f.name: str(f.type) for prefix in ("forward_", "gradient_") for f in fields(Summary)}
    arrow = {"int": "int64", "float": "float64", "bool": "bool_"}
    return {column: arrow.get(words[column].removesuffix(" | None"), "string") for column in COLUMNS}


def _typed(kind: str, raw: Any) -> Any:
    if raw is None:
        return None
    return {"int64": int, "float64": float, "bool_": bool}.get(kind, str)(raw)
