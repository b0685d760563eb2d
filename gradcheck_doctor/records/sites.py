"""Where something happened: a span of source, a module path, a call."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Span:
    """A stretch of one source file; lines and columns are 1-based, columns count characters, the end is exclusive."""

    file: str
    line: int
    column: int = 1
    end_line: int | None = None
    end_column: int | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class BlindSpot:
    """Something that could not be observed. Not measured is never "passed"."""

    module: str
    reason: str
