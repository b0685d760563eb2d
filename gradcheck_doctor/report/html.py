"""A self-contained page: verdict, findings with source, curves, gradient along the spine, layer table. No request leaves it."""
from __future__ import annotations

import functools
import linecache
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradcheck_doctor.records.codec import relative
from gradcheck_doctor.records.findings import Finding, ReportData
from gradcheck_doctor.report.charts import chart_of
from gradcheck_doctor.report.lines import chosen
from gradcheck_doctor.report.rows import rows_of

if TYPE_CHECKING:
    from jinja2 import Template

    from gradcheck_doctor.report.render import Style

CURVES = {"loss": "Loss", "grad_norm": "Gradient norm"}


@functools.cache
def _template(name: str) -> Template:
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("gradcheck_doctor.report", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(name)


def page(reports: Sequence[ReportData], style: Style) -> str:
    """A whole document."""
    return _template("page.html").render(reports=[_view(r) for r in reports])


def fragment(report: ReportData) -> str:
    """The same content without a document around it, for notebooks."""
    return _template("report.html").render(report=_view(report))


def _view(report: ReportData) -> dict[str, Any]:
    by_print = {f.fingerprint: f for f in report.findings}
    findings = [{"f": f, "place": f"{relative(f.location.file)}:{f.location.line}:{f.location.column}" if f.location else "",
                 "source": _source(f), "explains": [by_print[x] for x in f.related if x in by_print]}
                for f in report.causes]
    serious = {f.code for f in report.findings if f.severity != "info"}
    return {"data": report, "findings": findings, "probe": chosen(report), "bars": _bars(report, serious), "rows": rows_of(report.layers),
            "charts": [chart for name, title in CURVES.items() if (chart := chart_of(title, report.curves.get(name, ())))],
            "counts": {s: report.count(s) for s in ("error", "warning", "info")}}


def _source(finding: Finding) -> tuple[str, str, str]:
    """The line at fault: what stands before the expression, the expression, what stands behind it."""
    span = finding.location
    line = linecache.getline(span.file, span.line).rstrip() if span is not None else ""
    if span is None or not line.strip():
        return "", "", ""
    end = span.end_column - 1 if span.end_column and span.end_line in (None, span.line) else len(line)
    return line[: span.column - 1].lstrip(), line[span.column - 1: end], line[end:]


def _bars(report: ReportData, serious: set[str]) -> dict[str, Any]:
    """Horizontal bars on a log scale, the largest gradient full width."""
    rows = [r for r in report.layers if r.on_spine and 0 < r.gradient.get("norm", 0.0) < math.inf]
    if not rows:
        return {"rows": []}
    top = max(r.gradient["norm"] for r in rows)
    low = max(min(r.gradient["norm"] for r in rows), top * 1e-10)
    span = max(math.log10(top / low), 2.0)
    return {"top": top, "span": span, "rows": [
        {"module": r.module or "(root)", "op": r.op, "norm": r.gradient["norm"], "sick": not serious.isdisjoint(r.verdict.split(", ")), "y": 16 * i,
         "width": round(max(2.0, 420 * (1 + math.log10(max(r.gradient["norm"], low) / top) / span)), 1)} for i, r in enumerate(rows[:300])]}
