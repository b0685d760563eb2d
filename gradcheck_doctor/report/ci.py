"""Formats of CI systems and review bots: GitLab code quality, JUnit, reviewdog's rdjson."""
from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from gradcheck_doctor.records.codec import relative
from gradcheck_doctor.records.findings import Finding, ReportData
from gradcheck_doctor.records.sites import Span

if TYPE_CHECKING:
    from gradcheck_doctor.report.render import Style

GITLAB = {"error": "major", "warning": "minor", "info": "info"}
RDJSON = {"error": "ERROR", "warning": "WARNING", "info": "INFO"}


def gitlab(reports: Sequence[ReportData], style: Style) -> str:
    """Code quality report: an array, one fingerprint a finding."""
    rows = [{"description": f"{f.code}: {f.message}", "check_name": f.rule, "fingerprint": f.fingerprint, "severity": GITLAB[f.severity],

             "location": {"path": relative(f.location.file) if f.location else r.target.partition(":")[0], "lines": {"begin": f.location.line if f.location else 1}}}
            for r in reports for f in r.findings]
    return json.dumps(rows, indent=1, ensure_ascii=False)


def junit(reports: Sequence[ReportData], style: Style) -> str:
    """One suite a target; a clean target has one passing case."""
    root = ElementTree.Element("testsuites", name="gradcheck-doctor")
    for report in reports:
        failures = [f for f in report.findings if f.severity != "info"]
        suite = ElementTree.SubElement(root, "testsuite", name=report.target, tests=str(max(1, len(report.findings))), failures=str(len(failures)), errors="0")
        for finding in report.findings:
            case = ElementTree.SubElement(suite, "testcase", name=f"{finding.code} {finding.rule} {finding.module}".strip(), classname=report.target)
            if finding.severity != "info":
                place = f"{relative(finding.location.file)}:{finding.location.line}: " if finding.location else ""
                ElementTree.SubElement(case, "failure", message=finding.message, type=finding.severity).text = place + finding.message
        if not report.findings:
            ElementTree.SubElement(suite, "testcase", name="no findings", classname=report.target)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode")


def rdjson(reports: Sequence[ReportData], style: Style) -> str:
    """Diagnostics with suggestions."""
    rows = [_diagnostic(f) for r in reports for f in r.findings if f.location is not None]
    return json.dumps({"source": {"name": "gradcheck-doctor"}, "diagnostics": rows}, indent=1, ensure_ascii=False)


def _diagnostic(finding: Finding) -> dict[str, Any]:
    assert finding.location is not None
    row: dict[str, Any] = {"message": finding.message, "severity": RDJSON[finding.severity], "code": {"value": finding.code},

             "location": {"path": relative(finding.location.file), "range": _range(finding.location)}}
    suggestions = [{"range": _range(e.span), "text": e.text} for fix in finding.fixes[:1] for e in fix.edits]
    if suggestions:
        row["suggestions"] = suggestions
    return row


def _range(span: Span) -> dict[str, Any]:
    return {"start": {"line": span.line, "column": span.column},
            "end": {"line": span.end_line or span.line, "column": span.end_column or span.column}}
