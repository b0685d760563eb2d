"""Suppression comments: `# doctor: ignore[GD201]` on the line that builds the layer or calls the function, and per-file ignores."""
from __future__ import annotations

import fnmatch
import functools
import linecache
import os
import re
from collections.abc import Mapping

from gradcheck_doctor.errors import UnknownRule
from gradcheck_doctor.packs import complain
from gradcheck_doctor.records.codec import relative
from gradcheck_doctor.records.findings import Finding
from gradcheck_doctor.rules.registry import expand

_LINE = re.compile(r"#\s*doctor:\s*ignore(?:\[([^\]]*)\]|(?!\s*\[))", re.IGNORECASE)
_OPEN = re.compile(r"#\s*doctor:\s*(?:file-)?ignore\s*\[[^\]]*$|#\s*doctor:\s*(?:file-)?ignore\s+\[", re.IGNORECASE)
_FILE = re.compile(r"#\s*doctor:\s*file-ignore(?:\[([^\]]*)\]|(?!\s*\[))", re.IGNORECASE)


def is_suppressed(finding: Finding, per_file: Mapping[str, tuple[str, ...]] | None = None) -> bool:
    """Whether a comment in the source, or a per-file setting, silences `finding`."""
    place = finding.location
    if place is None:
        return False
    if any(_in_file(place.file, pattern) and _names(finding, codes) for pattern, codes in (per_file or {}).items()):
        return True
    for span in dict.fromkeys(s for s in (place, finding.built) if s is not None):
        _checked(span.file)
        if any(_matches(_LINE, linecache.getline(span.file, line), finding) for line in range(span.line, (span.end_line or span.line) + 1)):
            return True
    return any(_matches(_FILE, line, finding) for line in _file_comments(place.file))


@functools.lru_cache(maxsize=256)
def _checked(file: str) -> None:
    """Say which codes in the comments of a file no rule has."""
    for number, line in enumerate(linecache.getlines(file), 1):
        if _OPEN.search(line.rstrip()):
            complain(f"{relative(file)}:{number}: this comment ignores nothing: write it as `# doctor: ignore[GD201]`")
        named = [found[1] for pattern in (_LINE, _FILE) if (found := pattern.search(line)) is not None and found[1]]
        for code in (c.strip() for codes in named for c in codes.split(",") if c.strip()):
            try:
                expand([code])
            except UnknownRule:
                complain(f"{relative(file)}:{number}: this comment ignores {code}, which no rule is called; `doctor rule` lists them")


def _in_file(file: str, pattern: str) -> bool:
    """A pattern without a slash is matched against the name of the file, another one against its absolute path."""
    path = os.path.realpath(file)
    return fnmatch.fnmatch(path, os.path.abspath(pattern)) if "/" in pattern else fnmatch.fnmatch(os.path.basename(path), pattern)


@functools.lru_cache(maxsize=256)
def _file_comments(file: str) -> tuple[str, ...]:
    return tuple(line for line in linecache.getlines(file) if "file-ignore" in line)


def _matches(pattern: re.Pattern[str], line: str, finding: Finding) -> bool:
    found = pattern.search(line)
    if found is None:
        return False
    return found.group(1) is None or _names(finding, tuple(c.strip() for c in found.group(1).split(",")))


def _names(finding: Finding, codes: tuple[str, ...]) -> bool:
    return any(c.lower() == finding.rule or c.upper() == "ALL" or c and finding.code.startswith(c.upper()) for c in codes)
