"""Any record as JSON's own types and back, exactly: tuples stay tuples, spans stay spans, nan stays nan.

The report's JSON (codec) is made for readers; this is made to get the same recording back, so that rules find the same in it.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from gradcheck_doctor.errors import ConfigError
from gradcheck_doctor.records import recording, sites, summaries

#: Every record class by name; a new record in these modules is known without a change here.
CLASSES = {name: item for module in (sites, summaries, recording) for name, item in vars(module).items() if isinstance(item, type) and is_dataclass(item)}
TAG = "$"


def encode(value: Any) -> Any:
    """`value` as JSON's own types. Fields of records that have their default are left out.

    >>> encode({"a": (1, float("nan"))})
    {'a': [1, {'$': 'float', 'value': 'nan'}]}
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {TAG: "float", "value": repr(value)}
    if isinstance(value, tuple):
        return [encode(v) for v in value]
    if isinstance(value, (list, set, frozenset)):
        items = value if isinstance(value, list) else sorted(value, key=repr)
        return {TAG: "list" if isinstance(value, list) else "set", "value": [encode(v) for v in items]}
    if isinstance(value, Mapping):
        if all(isinstance(k, str) and not k.startswith(TAG) for k in value):
            return {k: encode(v) for k, v in value.items()}
        return {TAG: "map", "value": [[encode(k), encode(v)] for k, v in value.items()]}
    if CLASSES.get(type(value).__name__) is type(value):
        return {TAG: type(value).__name__, **{f.name: encode(v) for f in fields(value) if not _is_default(f, v := getattr(value, f.name))}}
    return str(value)


def _is_default(field: Any, value: Any) -> bool:
    if field.default_factory is not MISSING:
        return bool(value == {})
    return field.default is not MISSING and type(value) is type(field.default) and bool(value == field.default)


def decode(data: Any) -> Any:
    """What `encode` was given. Fields that a newer version wrote are dropped.

    Raises:
        ConfigError: a record of a kind that this version does not know.
    """
    if isinstance(data, list):
        return tuple(decode(v) for v in data)
    if not isinstance(data, dict):
        return data
    tag = data.get(TAG)
    if tag is None:
        return {k: decode(v) for k, v in data.items()}
    if tag == "float":
        return float(data["value"])
    if tag in ("list", "set"):
        return (list if tag == "list" else frozenset)(decode(v) for v in data["value"])
    if tag == "map":
        return {decode(k): decode(v) for k, v in data["value"]}
    record = CLASSES.get(tag)
    if record is None:
        raise ConfigError(f"the file holds a {tag!r}, which this version does not know; upgrade gradcheck-doctor")
    known = {f.name for f in fields(record)}
    return record(**{k: decode(v) for k, v in data.items() if k in known})
