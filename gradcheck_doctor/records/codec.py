"""Reports as strict JSON (schema_version 1) and back."""
from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from gradcheck_doctor.errors import ConfigError
from gradcheck_doctor.records.findings import Edit, Finding, Fix, LayerRow, Prescription, ReportData, Verified
from gradcheck_doctor.records.sites import BlindSpot, Span

SCHEMA_VERSION = 1


def to_json(report: ReportData) -> dict[str, Any]:
    """The report as plain data; not-a-number and infinities as strings, files relative to the working directory when below it."""
    return {
        "schema_version": SCHEMA_VERSION, "tool": {"name": "gradcheck-doctor", "version": report.version}, "target": report.target,
        "kind": report.kind, "model": _plain(report.model), "probe": _plain(report.probe),
        "summary": {**{s: report.count(s) for s in ("error", "warning", "info")}, "fixable": report.fixable, "verdict": report.verdict,
                    "suppressed": report.suppressed},
        "findings": [_finding(f) for f in report.findings], "layers": [_layer(row) for row in report.layers],
        "curves": {name: [[_plain(a), _plain(b)] for a, b in points] for name, points in report.curves.items()},
        "blind_spots": [{"module": b.module, "reason": b.reason} for b in report.blind_spots], "readings": _plain(report.readings)}


def _plain(value: Any) -> Any:
    """JSON's own types only."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, Span):
        return span_json(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    return str(value)


def relative(file: str) -> str:
    """`file` relative to the working directory when it is below it."""
    try:
        path = os.path.relpath(file)
    except ValueError:
        return file
    return file if path.startswith("..") else path.replace(os.sep, "/")


def span_json(span: Span | None) -> dict[str, Any] | None:
    if span is None:
        return None
    return {"file": relative(span.file), "line": span.line, "column": span.column, "end_line": span.end_line or span.line,
            "end_column": span.end_column or span.column}


def _finding(f: Finding) -> dict[str, Any]:
    return {"code": f.code, "rule": f.rule, "severity": f.severity, "fingerprint": f.fingerprint, "module": f.module, "modules": list(f.modules),
            "op": f.op, "location": span_json(f.location), "message": f.message, "evidence": _plain(f.evidence),
            "fixes": [_fix(x) for x in f.fixes], "related": list(f.related)}


def _fix(fix: Fix) -> dict[str, Any]:
    p = fix.prescription
    return {"id": p.id, "title": p.title, "safety": p.safety, "kind": p.kind,
            "edits": [{**(span_json(e.span) or {}), "text": e.text} for e in fix.edits],
            "verified": {"status": fix.verified.status, "before": _plain(fix.verified.before), "after": _plain(fix.verified.after),
                         "reason": fix.verified.reason},
            "refusal": fix.refusal, "treatment": p.treatment, "modules": list(p.modules), "span": span_json(p.span), "arguments": _plain(p.arguments)}


def _layer(row: LayerRow) -> dict[str, Any]:
    return {"module": row.module, "op": row.op, "order": row.order, "on_spine": row.on_spine, "location": span_json(row.location),
            "forward": _plain(row.forward), "gradient": _plain(row.gradient), "weight": _plain(row.weight), "verdict": row.verdict}


def from_json(data: Any) -> ReportData:
    """The report that `to_json` wrote.

    Raises:
        ConfigError: `data` is no report, or of a newer version.
    """
    if not isinstance(data, dict) or "schema_version" not in data or "findings" not in data:
        raise ConfigError("this file is no report of gradcheck-doctor: write one with `--format json --output report.json`")
    if data["schema_version"] > SCHEMA_VERSION:
        raise ConfigError(f"the report has schema version {data['schema_version']}, this version reads up to {SCHEMA_VERSION}; upgrade gradcheck-doctor")
    return ReportData(
        target=data["target"], kind=data["kind"], model=data["model"], probe=data["probe"],
        findings=tuple(_read_finding(f) for f in data["findings"]),
        layers=tuple(LayerRow(**{**row, "location": _read_span(row["location"])}) for row in data.get("layers", ())),
        curves={k: tuple((_number(a), _number(b)) for a, b in v) for k, v in data.get("curves", {}).items()},
        blind_spots=tuple(BlindSpot(b["module"], b["reason"]) for b in data.get("blind_spots", ())),
        suppressed=data.get("summary", {}).get("suppressed", 0), version=data.get("tool", {}).get("version", ""),
        readings={k: _number(v) for k, v in data.get("readings", {}).items()})


def _number(value: Any) -> float:
    return float(value)


def _read_span(data: Mapping[str, Any] | None) -> Span | None:
    if not data:
        return None
    return Span(data["file"], data["line"], data["column"], data.get("end_line"), data.get("end_column"))


def _read_finding(data: Mapping[str, Any]) -> Finding:
    return Finding(code=data["code"], rule=data["rule"], severity=data["severity"], message=data["message"], module=data["module"],
                   modules=tuple(data["modules"]), op=data["op"], location=_read_span(data["location"]), evidence=data["evidence"],
                   fixes=tuple(_read_fix(f) for f in data["fixes"]), related=tuple(data["related"]),
                   known_as=data.get("fingerprint", ""))


def _read_fix(data: Mapping[str, Any]) -> Fix:
    prescription = Prescription(data.get("treatment", data["id"]), data["title"], data["safety"], data["kind"], tuple(data.get("modules", ())),
                                _read_span(data.get("span")), data.get("arguments", {}))
    edits = tuple(Edit(span, e["text"]) for e in data["edits"] if (span := _read_span(e)) is not None)
    verified = data["verified"]
    return Fix(prescription, edits, Verified(verified["status"], verified["before"], verified["after"], verified.get("reason", "")), data.get("refusal", ""))
