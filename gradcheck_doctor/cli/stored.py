"""The reports in a file that an earlier command wrote: JSON, or a store whose recording is judged again."""
from __future__ import annotations

import json
import os
from dataclasses import dataclass

from gradcheck_doctor.config import Config
from gradcheck_doctor.errors import ConfigError
from gradcheck_doctor.records.codec import from_json
from gradcheck_doctor.records.findings import ReportData


@dataclass(frozen=True)
class StoredReports:
    """What was in the file; `arguments` are those of the script that a store was written by."""

    reports: tuple[ReportData, ...]
    arguments: tuple[str, ...] = ()


def stored_reports(path: str, config: Config | None = None) -> StoredReports:
    """The reports in `path`; with `config`, a store is judged by its rules and thresholds.

    Raises:
        ConfigError: the file can't be read, or is neither a report nor a store.
    """
    from gradcheck_doctor.store.reader import MADE_BY, is_sqlite

    if is_sqlite(path):
        return _judged(path, config)
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is neither a JSON report nor a store; {MADE_BY}") from error
    many = isinstance(data, dict) and "reports" in data
    return StoredReports(tuple(from_json(d) for d in (data["reports"] if many else [data])))


def _judged(path: str, config: Config | None) -> StoredReports:
    """Findings on what was stored; the script is named from here, wherever it was run."""
    from gradcheck_doctor.session import examine
    from gradcheck_doctor.store.reader import read

    stored = read(path)
    target = str(stored.meta.get("target", path))
    if not stored.meta.get("module"):
        whole = os.path.join(str(stored.meta.get("folder", "")), target)
        near = os.path.relpath(whole)
        target = target if os.path.abspath(target) == whole else whole if near.startswith("..") else near
    return StoredReports((examine(stored.recording, target, config).report,), tuple(stored.meta.get("arguments", ())))
