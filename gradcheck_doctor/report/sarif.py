"""SARIF 2.1.0, as GitHub code scanning reads it."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gradcheck_doctor.records.codec import relative
from gradcheck_doctor.records.findings import Edit, Finding, Fix, ReportData
from gradcheck_doctor.records.sites import Span

if TYPE_CHECKING:
    from gradcheck_doctor.report.render import Style

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {"error": "error", "warning": "warning", "info": "note"}


def sarif(reports: Sequence[ReportData], style: Style) -> dict[str, Any]:
    """One run a report; URIs relative to the working directory."""
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [_run(r, style) for r in reports]}


def _run(report: ReportData, style: Style) -> dict[str, Any]:
    codes = list(dict.fromkeys(f.code for f in report.findings))
    rules = [_rule(code, report, style) for code in codes]
    return {"tool": {"driver": {"name": "gradcheck-doctor", "version": report.version or "0", "rules": rules}},
            "automationDetails": {"id": f"doctor/{report.target}/"}, "columnKind": "unicodeCodePoints",
            "results": [_result(f, codes.index(f.code)) for f in report.findings]}


def _rule(code: str, report: ReportData, style: Style) -> dict[str, Any]:
    known = style.rules.get(code)
    name = known.name if known else next(f.rule for f in report.findings if f.code == code)
    summary = known.summary if known else name
    explanation = (known.explanation if known else summary) or summary
    return {"id": code, "name": name, "shortDescription": {"text": summary}, "fullDescription": {"text": explanation[:1000]},
            "help": {"text": explanation, "markdown": explanation}, "properties": {"tags": ["pytorch", "training"], "precision": "high"}}


def _result(finding: Finding, index: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.code, "ruleIndex": index, "level": LEVELS[finding.severity], "message": {"text": finding.message},
        "partialFingerprints": {"doctorFingerprint/v1": finding.fingerprint}}
    location: dict[str, Any] = {}
    if finding.location is not None:
        location["physicalLocation"] = {"artifactLocation": {"uri": _uri(finding.location.file)}, "region": _region(finding.location)}
    if finding.module:
        location["logicalLocations"] = [{"fullyQualifiedName": finding.module, "kind": "member"}]
    if location:
        result["locations"] = [location]
    fixes = [_fix(f) for f in finding.fixes if f.edits]
    if fixes:
        result["fixes"] = fixes
    return result


def _uri(file: str) -> str:
    return quote(relative(file))


def _region(span: Span) -> dict[str, int]:
    region = {"startLine": span.line, "startColumn": span.column}
    if span.end_line:
        region["endLine"] = span.end_line
    if span.end_column:
        region["endColumn"] = span.end_column
    return region


def _fix(fix: Fix) -> dict[str, Any]:
    files: dict[str, list[Edit]] = {}
    for edit in fix.edits:
        files.setdefault(edit.span.file, []).append(edit)
    return {"description": {"text": fix.prescription.title}, "artifactChanges": [
        {"artifactLocation": {"uri": _uri(file)},
         "replacements": [{"deletedRegion": _region(e.span), "insertedContent": {"text": e.text}} for e in edits]} for file, edits in files.items()]}
