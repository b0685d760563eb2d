"""Texts that stand in for files that a script imports, so that an edit of them can be tried before it is written.

A process that tries one names both in an environment variable; the process that runs the script installs them before it begins.
"""
from __future__ import annotations

import functools
import json
import linecache
import os
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from types import CodeType
from typing import Any

from gradcheck_doctor.records.sources import decoded, lines_of

VARIABLE = "GRADCHECK_DOCTOR_EDITED"


def environment(texts: Mapping[str, str]) -> dict[str, str]:
    """The variable for a process in which the files on the left are to be what those on the right hold."""
    return {VARIABLE: json.dumps({os.path.realpath(file): text for file, text in texts.items()})}


@functools.cache
def _texts() -> Mapping[str, str]:
    found: Mapping[str, str] = json.loads(os.environ.get(VARIABLE, "{}"))
    return found


def current(file: str) -> str:
    """The file that holds what `file` is taken for; mostly itself."""
    texts = _texts()
    return texts.get(os.path.realpath(file), file) if texts else file


def install() -> None:
    """From now on, imports and tracebacks of this process see the edited texts; nothing happens where there are none."""
    for file, text in _texts().items():
        with open(text, "rb") as stream:
            source = decoded(stream.read())
        linecache.cache[file] = (len(source), None, lines_of(source), file)           # without a time of change: never looked up again
    if _texts():
        SourceFileLoader.get_code = _edited(SourceFileLoader.get_code)                # type: ignore[method-assign, assignment]


def _edited(original: Any) -> Any:
    @functools.wraps(original)
    def get_code(self: SourceFileLoader, fullname: str) -> CodeType | None:
        text = _texts().get(os.path.realpath(self.path))
        if text is None:
            code: CodeType | None = original(self, fullname)
            return code
        with open(text, "rb") as stream:
            return compile(stream.read(), self.path, "exec", dont_inherit=True)

    return get_code
