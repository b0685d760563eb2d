"""[tool.gradcheck-doctor] of the nearest pyproject.toml as a frozen Config; command line over environment over file."""
from __future__ import annotations

import difflib
import glob
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from gradcheck_doctor.errors import ConfigError
from gradcheck_doctor.records.interval import interval

TABLE = "gradcheck-doctor"
PREFIX = "GRADCHECK_DOCTOR_"
LEVELS = ("info", "warning", "error")
CHOICES = {"severity": ("info", "warning", "error"), "fail_on": ("error", "warning", "info", "never")}


@dataclass(frozen=True)
class Config:
    """Settings shared by all commands. Selectors are codes, prefixes (GD2), names or ALL.

    `per_file_ignores`: file pattern -> selectors. A pattern without a slash is matched against the file's name; one with a slash against its path,
    from the folder of pyproject.toml where it was read from one, else from the working directory.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    extend_select: tuple[str, ...] = ()
    severity: str = "info"
    fail_on: str = "warning"
    baseline: str | None = None
    per_file_ignores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    every: str | int = "auto"
    callback: bool = False


def load(path: str | None = None, start: Path | None = None) -> Config:
    """The configuration of `path`, or of the nearest pyproject.toml at or above `start`, with the environment over it.

    Raises:
        ConfigError: the file is missing or no TOML, a key or value is unknown; the message suggests the nearest.
    """
    file = Path(path) if path is not None else _nearest(start or Path.cwd())
    if path is not None and not Path(path).is_file():
        raise ConfigError(f"configuration file {path} does not exist")
    if file is None:
        return _from_environment(Config())
    config = _config(_table(file), str(file))
    if config.baseline is not None:
        config = replace(config, baseline=str(file.parent / config.baseline))        # as other tools do: from the folder of pyproject.toml
    return _from_environment(replace(config, per_file_ignores={_anchored(p, file.parent): codes for p, codes in config.per_file_ignores.items()}))


def _anchored(pattern: str, folder: Path) -> str:
    """A pattern with a slash is meant from the folder of its pyproject.toml, wherever the command runs."""
    return os.path.join(glob.escape(str(folder.resolve())), pattern) if "/" in pattern else pattern


def _nearest(folder: Path) -> Path | None:
    for parent in (folder, *folder.parents):
        if (parent / "pyproject.toml").is_file():
            return parent / "pyproject.toml"
    return None


def _table(file: Path) -> dict[str, Any]:
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no valid TOML: {error}") from error
    tool = data.get("tool", {})
    table = tool.get(TABLE, {}) if isinstance(tool, dict) else None
    if not isinstance(table, dict):
        raise ConfigError(f"{file}: [tool.{TABLE}] must be a table")
    return table


def _config(table: Mapping[str, Any], where: str) -> Config:
    known = {f.name for f in fields(Config)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {near[0].replace('_', '-')}?" if near else ""
            raise ConfigError(f"{where}: [tool.{TABLE}] has an unknown key {key!r}.{hint}")
        values[name] = _checked(name, value, where)
    return replace(Config(), **values)


def _checked(name: str, value: Any, where: str) -> Any:
    kind: Any = next(f.default if f.default_factory is not dict else {} for f in fields(Config) if f.name == name)
    if isinstance(kind, tuple):
        if isinstance(value, str) or not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise ConfigError(f"{where}: {name.replace('_', '-')} must be a list of strings, not {value!r}")
        return tuple(value)
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {name.replace('_', '-')} must be a table, not {value!r}")
        if name == "thresholds":
            return {rule: _levels(rule, levels, where) for rule, levels in value.items()}
        for pattern, codes in value.items():
            if not isinstance(codes, (list, tuple)) or not all(isinstance(c, str) for c in codes):
                raise ConfigError(f"{where}: per-file-ignores of {pattern!r} must be a list of strings, not {codes!r}")
        return {pattern: tuple(codes) for pattern, codes in value.items()}
    if name in CHOICES and value not in CHOICES[name]:
        raise ConfigError(f"{where}: {name.replace('_', '-')} must be one of {', '.join(CHOICES[name])}, not {value!r}")
    if name == "every":
        return interval(value, f"{where}: every")
    if isinstance(kind, bool) and not isinstance(value, bool):
        raise ConfigError(f"{where}: {name} must be true or false, not {value!r}")
    return value


def _levels(rule: str, levels: Any, where: str) -> dict[str, float]:
    """Thresholds of one rule: severity -> number."""
    if not isinstance(levels, dict) or not levels:
        raise ConfigError(f"{where}: thresholds.{rule} must be a table such as {{warning = 0.01}}, not {levels!r}")
    for level, value in levels.items():
        if level not in LEVELS:
            raise ConfigError(f"{where}: thresholds.{rule} has an unknown key {level!r}; it must be one of {', '.join(LEVELS)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{where}: thresholds.{rule}.{level} must be a number, not {value!r}")
    return {level: float(value) for level, value in levels.items()}


def _from_environment(config: Config) -> Config:
    changed: dict[str, Any] = {}
    for f in fields(Config):
        raw = os.environ.get(PREFIX + f.name.upper())
        if raw is None or f.name in ("thresholds", "per_file_ignores"):
            continue
        value: Any = tuple(v.strip() for v in raw.split(",") if v.strip()) if isinstance(f.default, tuple) else raw
        if isinstance(f.default, bool):
            value = raw.lower() in ("1", "true", "yes")
        changed[f.name] = _checked(f.name, value, f"environment variable {PREFIX}{f.name.upper()}")
    return replace(config, **changed)
