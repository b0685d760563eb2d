"""Edits as reviewers and code scanning take them: places in bytes, whole lines, the fix that is worth suggesting."""
from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gradcheck_doctor.records.findings import Edit, Finding, Fix
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.records.sources import decoded, lines_of


@dataclass(frozen=True)
class Replacement:
    """Replace the lines first..last (1-based, both included) by `text`, which has no line end at its end."""

    file: str
    first: int
    last: int
    text: str


def chosen(finding: Finding) -> Fix | None:
    """The fix to suggest: one with edits, proven before unproven, safe before unsafe."""
    ready = [f for f in finding.fixes if f.edits]
    return min(ready, key=lambda f: (f.verified.status != "improved", f.prescription.safety != "safe"), default=None)


def source_lines(file: str) -> tuple[str, ...]:
    """Lines of a source file with their ends; empty when it can't be read."""
    try:
        return _lines(file, os.stat(file).st_mtime_ns)
    except (OSError, ValueError):
        return ()


@functools.lru_cache(maxsize=64)
def _lines(file: str, changed: int) -> tuple[str, ...]:
    return tuple(lines_of(decoded(Path(file).read_bytes())))


def byte_column(file: str, line: int, column: int) -> int:
    """The column, counted in characters, as bytes of UTF-8."""
    lines = source_lines(file)
    return len(lines[line - 1][: column - 1].encode()) + 1 if 1 <= line <= len(lines) else column


def replacements(edits: Sequence[Edit]) -> list[Replacement]:
    """The edits as whole lines, neighbours merged; empty when the source is not at hand."""
    result = []
    for file in dict.fromkeys(e.span.file for e in edits):
        lines = source_lines(file)
        if not lines:
            return []
        groups: list[tuple[int, int, list[Edit]]] = []
        for edit in sorted((e for e in edits if e.span.file == file), key=lambda e: (e.span.line, e.span.column)):
            first, last = _touched(edit.span, lines)
            if groups and first <= groups[-1][1]:
                before = groups.pop()
                groups.append((before[0], max(before[1], last), [*before[2], edit]))
            else:
                groups.append((first, last, [edit]))
        result += [Replacement(file, first, last, _text(lines, first, last, group)) for first, last, group in groups]
    return result


def _touched(span: Span, lines: Sequence[str]) -> tuple[int, int]:
    """First and last line of a span; an insertion in front of a blank line, or of the end, belongs to the line before it."""
    first, last = span.line, span.end_line or span.line
    if (span.end_column or span.column) == 1 and last > 1 and (last > first or last > len(lines) or not lines[last - 1].strip()):
        last -= 1
    return min(first, last), last


def _text(lines: Sequence[str], first: int, last: int, edits: Sequence[Edit]) -> str:
    """The lines first..last with the edits made."""
    starts = [0]
    for line in lines[first - 1:last]:
        starts.append(starts[-1] + len(line))
    text = "".join(lines[first - 1:last])
    places = []
    for edit in edits:
        end_line, end_column = edit.span.end_line or edit.span.line, edit.span.end_column or edit.span.column
        places.append((starts[edit.span.line - first] + edit.span.column - 1, starts[end_line - first] + end_column - 1, edit.text))
    for begin, end, new in sorted(places, reverse=True):
        text = text[:begin] + new + text[end:]
    return text.removesuffix("\n")
