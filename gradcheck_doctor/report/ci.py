"""Formats of CI systems and review bots: GitLab code quality, JUnit, reviewdog's rdjson."""
from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from gradcheck_doctor.records.codec import relative
from gradcheck_doctor.records.findings import Finding, ReportData
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.records.sources import target_file
from gradcheck_doctor.report.edits import byte_column, chosen, replacements

if TYPE_CHECKING:
    from gradcheck_doctor.report.render import Style

GITLAB = {"error": "major", "warning": "minor", "info": "info"}
RDJSON = {"error": "ERROR", "warning": "WARNING", "info": "INFO"}


def gitlab(reports: Sequence[ReportData], style: Style) -> str:
    """Code quality report: an array; findings of equal fingerprint would be shown as one, so each gets its own."""
    seen: dict[str, int] = {}
    rows = []
    for report in reports:
        for finding in report.findings:
            number = seen[finding.fingerprint] = seen.get(finding.fingerprint, 0) + 1
            rows.append({"description": f"{finding.code}: {finding.message}", "check_name": finding.rule,
                         "fingerprint": finding.fingerprint + (f"-{number}" if number > 1 else ""), "severity": GITLAB[finding.severity],
                         "location": {"path": relative(finding.location.file) if finding.location else target_file(report.target),
                                      "lines": {"begin": finding.location.line if finding.location else 1}}})
    return json.dumps(rows, indent=1, ensure_ascii=False)


def junit(reports: Sequence[ReportData], style: Style) -> str:
    """One suite a target; a clean target has one passing case."""
    root = ElementTree.Element("testsuites", name="gradcheck-doctor")
    for report in reports:
        failures = [f for f in report.findings if f.severity != "info"]
        suite = ElementTree.SubElement(root, "testsuite", name=_xml(report.target), tests=str(max(1, len(report.findings))), failures=str(len(failures)), errors="0")
        for finding in report.findings:
            case = ElementTree.SubElement(suite, "testcase", name=_xml(f"{finding.code} {finding.rule} {finding.module}".strip()), classname=_xml(report.target))
            if finding.severity != "info":
                place = f"{relative(finding.location.file)}:{finding.location.line}: " if finding.location else ""
                ElementTree.SubElement(case, "failure", message=_xml(finding.message), type=finding.severity).text = _xml(place + finding.message)
        if not report.findings:
            ElementTree.SubElement(suite, "testcase", name="no findings", classname=_xml(report.target))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode")


def _xml(text: str) -> str:
    """Without the characters that XML has no place for."""
    return "".join(c if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "\ufffd" for c in text)


def rdjson(reports: Sequence[ReportData], style: Style) -> str:
    """Diagnostics with suggestions: whole lines, one a diagnostic, as review comments take them; columns count bytes of UTF-8."""
    rows = [row for r in reports for f in r.findings if f.location is not None for row in _diagnostics(f, f.location)]
    return json.dumps({"source": {"name": "gradcheck-doctor"}, "diagnostics": rows}, indent=1, ensure_ascii=False)


def _diagnostics(finding: Finding, place: Span) -> list[dict[str, Any]]:
    """The finding with the first suggestion; each further one stands at its own lines."""
    fix = chosen(finding)
    code = {"value": finding.code}
    row: dict[str, Any] = {"message": finding.message, "severity": RDJSON[finding.severity], "code": code,
                           "location": {"path": relative(place.file), "range": _range(place)}}
    if fix is None:
        return [row]
    proof = "measured to help" if fix.verified.status == "improved" else "not proven yet"
    advice = f"{fix.prescription.title} [{fix.prescription.safety}, {proof}]"
    row["message"] += f"\ntry: {advice}"
    rows = [row]
    for number, part in enumerate(replacements(fix.edits)):
        lines = {"start": {"line": part.first}, "end": {"line": part.last}}
        if number:
            rows.append({"message": f"part {number + 1} of: {advice}", "severity": RDJSON[finding.severity], "code": code,
                         "location": {"path": relative(part.file), "range": lines}})
        rows[-1]["suggestions"] = [{"range": lines, "text": part.text}]
    return rows


def _range(span: Span) -> dict[str, Any]:
    line, column = span.end_line or span.line, span.end_column or span.column
    return {"start": {"line": span.line, "column": byte_column(span.file, span.line, span.column)},
            "end": {"line": line, "column": byte_column(span.file, line, column)}}
