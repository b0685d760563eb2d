"""One function for all formats."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gradcheck_doctor.errors import ConfigError
from gradcheck_doctor.records.codec import to_json
from gradcheck_doctor.records.findings import ReportData


@dataclass(frozen=True)
class RuleInfo:
    """What machine formats say about a rule."""

    code: str
    name: str
    summary: str
    explanation: str = ""


@dataclass(frozen=True)
class Style:
    """How to render: rules by code, all rows or a selection, ANSI colours, columns to wrap prose to (None: not at all)."""

    rules: Mapping[str, RuleInfo]
    verbose: bool = False
    colour: bool = False
    quiet: bool = False
    width: int | None = None


def _text(reports: Sequence[ReportData], style: Style) -> str:
    from gradcheck_doctor.report.text import text

    return "\n\n".join(shown for r in reports if (shown := text(r, style)))


def _json(reports: Sequence[ReportData], style: Style) -> str:
    """One report as the contract says; several as {"schema_version": 1, "reports": [...]}."""
    data = [to_json(r) for r in reports]
    return json.dumps(data[0] if len(data) == 1 else {"schema_version": 1, "reports": data}, indent=1, allow_nan=False, ensure_ascii=False)


def _lines(name: str) -> Callable[[Sequence[ReportData], Style], str]:
    def render_lines(reports: Sequence[ReportData], style: Style) -> str:
        from gradcheck_doctor.report import lines

        return str(getattr(lines, name)(reports, style))

    return render_lines


def _sarif(reports: Sequence[ReportData], style: Style) -> str:
    from gradcheck_doctor.report.sarif import sarif

    return json.dumps(sarif(reports, style), indent=1, allow_nan=False, ensure_ascii=False)


def _html(reports: Sequence[ReportData], style: Style) -> str:
    from gradcheck_doctor.report.html import page

    return page(reports, style)


def _ci(name: str) -> Callable[[Sequence[ReportData], Style], str]:
    def render_ci(reports: Sequence[ReportData], style: Style) -> str:
        from gradcheck_doctor.report import ci

        return str(getattr(ci, name)(reports, style))

    return render_ci


FORMATS: Mapping[str, Callable[[Sequence[ReportData], Style], str]] = {
    "text": _text, "concise": _lines("concise"), "json": _json, "markdown": _lines("markdown"), "html": _html, "sarif": _sarif,
    "github": _lines("github"), "gitlab": _ci("gitlab"), "junit": _ci("junit"), "rdjson": _ci("rdjson")}
MACHINE = frozenset({"json", "sarif", "gitlab", "junit", "rdjson", "github"})
_SUFFIXES = {".json": "json", ".sarif": "sarif", ".md": "markdown", ".markdown": "markdown", ".html": "html", ".htm": "html", ".txt": "text", ".xml": "junit"}


def render(reports: ReportData | Sequence[ReportData], format: str, style: Style | None = None) -> str:
    """`reports` in `format`.

    Raises:
        ConfigError: there is no such format.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}; choose from {', '.join(FORMATS)}")
    chosen = [reports] if isinstance(reports, ReportData) else list(reports)
    return FORMATS[format](chosen, style or Style({}))


def format_of(path: str) -> str | None:
    """The format that a file name's suffix asks for."""
    return next((f for suffix, f in _SUFFIXES.items() if path.lower().endswith(suffix)), None)
