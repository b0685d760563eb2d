"""SARIF 2.1.0, as GitHub code scanning reads it."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gradcheck_doctor.records.codec import relative
from gradcheck_doctor.records.findings import Edit, Finding, Fix, ReportData
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.records.sources import target_file

if TYPE_CHECKING:
    from gradcheck_doctor.report.render import Style

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {"error": "error", "warning": "warning", "info": "note"}


def sarif(reports: Sequence[ReportData], style: Style) -> dict[str, Any]:
    """One run for all reports, since code scanning takes one run of a tool and category; URIs relative to the working directory."""
    found = [(f, r) for r in reports for f in r.findings]
    codes = list(dict.fromkeys(f.code for f, _ in found))
    names = {f.code: f.rule for f, _ in found}
    version = next((r.version for r in reports if r.version), "0")
    category = f"doctor/{reports[0].target}/" if len(reports) == 1 else "doctor/"
    run = {"tool": {"driver": {"name": "gradcheck-doctor", "version": version, "rules": [_rule(code, names[code], style) for code in codes]}},
           "automationDetails": {"id": category}, "columnKind": "unicodeCodePoints",
           "results": [_result(f, r, codes.index(f.code)) for f, r in found]}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(code: str, rule: str, style: Style) -> dict[str, Any]:
    known = style.rules.get(code)
    name = known.name if known else rule
    summary = known.summary if known else name
    explanation = (known.explanation if known else summary) or summary
    return {"id": code, "name": name, "shortDescription": {"text": summary}, "fullDescription": {"text": explanation[:1000]},
            "help": {"text": explanation, "markdown": explanation}, "properties": {"tags": ["pytorch", "training"], "precision": "high"}}


def _result(finding: Finding, report: ReportData, index: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.code, "ruleIndex": index, "level": LEVELS[finding.severity], "message": {"text": finding.message},
        "partialFingerprints": {"doctorFingerprint/v1": finding.fingerprint}}
    location: dict[str, Any] = {}
    if finding.location is not None:
        location["physicalLocation"] = {"artifactLocation": {"uri": _uri(finding.location.file)}, "region": _region(finding.location)}
    elif target_file(report.target).endswith(".py"):           # code scanning refuses a result without a place
        location["physicalLocation"] = {"artifactLocation": {"uri": _uri(target_file(report.target))}, "region": {"startLine": 1}}
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
    proof = {"improved": ", measured to help", "not-run": ", not proven yet"}.get(fix.verified.status, "")
    return {"description": {"text": f"{fix.prescription.title} [{fix.prescription.safety}{proof}]"}, "artifactChanges": [
        {"artifactLocation": {"uri": _uri(file)},
         "replacements": [{"deletedRegion": _region(e.span), "insertedContent": {"text": e.text}} for e in edits]} for file, edits in files.items()]}
