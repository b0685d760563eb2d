"""The report for a terminal: verdict, findings with their source lines, the layer table with a bar of the gradient."""
from __future__ import annotations

import linecache
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tabulate import tabulate

from gradcheck_doctor.records.codec import relative
from gradcheck_doctor.records.findings import Finding, LayerRow, ReportData
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.report.lines import chosen, unseen
from gradcheck_doctor.report.rows import Row, rows_of

if TYPE_CHECKING:
    from gradcheck_doctor.report.render import Style

COLOURS = {"error": "31;1", "warning": "33;1", "info": "36", "healthy": "32;1", "watch": "33;1", "sick": "31;1", "dim": "2", "bold": "1"}
ROWS = 40              # of the layer table, unless verbose
NAMED = 3              # layers named of those that a line of source gives the same finding
BAR = "▁▂▃▄▅▆▇█"
PROOF = {"improved": ", measured to help", "no-effect": ", measured to be of no effect", "worse": ", measured to harm"}


def paint(text: str, colour: str, style: Style) -> str:
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if style.colour else text


def text(report: ReportData, style: Style) -> str:
    """The whole report; findings only when `style.quiet`."""
    if style.quiet and not report.findings and not report.suppressed:
        return ""
    parts = [_headline(report, style)]
    by_print = {f.fingerprint: f for f in report.findings}
    shown = report.causes
    for first, *others in [[f] for f in shown] if style.verbose else _alike(shown):
        part = _finding(first, [by_print[fp] for f in (first, *others) for fp in f.related if fp in by_print], style)
        named = ", ".join(f.module or f.op for f in others[:NAMED]) + (f" and {len(others) - NAMED} more" if len(others) > NAMED else "")
        parts.append(part + (f"\n{paint(_indented(f'the same of {named}', style), 'dim', style)}" if others else ""))
    if not style.quiet:
        if report.layers and report.findings or style.verbose:
            parts.append(_table(report.layers, {f.code for f in shown}, style))
        parts.append(_probe(report, style))
    parts.append(_summary(report, style))
    return "\n\n".join(p for p in parts if p)


def _alike(findings: Sequence[Finding]) -> list[list[Finding]]:
    """What one rule says of the same source line, such as that of a block that is built many times: together."""
    groups: dict[object, list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.code, finding.severity, finding.location or finding.fingerprint), []).append(finding)
    return list(groups.values())


def _headline(report: ReportData, style: Style) -> str:
    model = report.model
    what = f"{model.get('class') or 'model'}, {model.get('parameters', 0):,} parameters, {model.get('dtype')} on {model.get('device')}"
    root = next((f for f in report.findings if f.severity != "info"), None)
    cause = f": {root.rule}" if root is not None else ""
    verdict = paint(report.headline + cause, "watch" if report.nothing_seen or report.stalled else report.verdict, style)
    head = f"{paint(report.target, 'bold', style)}  {verdict}"
    return head if report.nothing_seen and not model.get("class") else f"{head}\n{paint(what, 'dim', style)}"


def _finding(finding: Finding, symptoms: Sequence[Finding], style: Style) -> str:
    place = _place(finding.location)
    where = " ".join(x for x in (finding.module or finding.op, f"({place})" if place else "") if x)
    lines = [f"{paint(f'{finding.code} {finding.rule}', 'bold', style)}  {paint(finding.severity, finding.severity, style)}  {where}".rstrip(),
             _indented(finding.message, style)]
    lines += _excerpt(finding.location, style)
    tries = [f"{f.prescription.title} [{f.prescription.safety}{PROOF.get(f.verified.status, '')}]" for f in finding.fixes]
    if tries:
        lines.append(_indented(f"try: {'; or '.join(tries)}", style))
    if symptoms:
        names: dict[str, int] = {}
        for s in symptoms:
            names[f"{s.code} {s.rule}"] = names.get(f"{s.code} {s.rule}", 0) + 1
        listed = ", ".join(n if k == 1 else f"{n} ({k} times)" for n, k in names.items())
        lines.append(paint(_indented(f"explains: {listed}", style), "dim", style))
        if style.verbose:
            lines += [paint(f"      {s.code} {s.module}: {s.message}", "dim", style) for s in symptoms]
    return "\n".join(lines)


def _indented(prose: str, style: Style) -> str:
    """Four columns in; folded where the terminal ends."""
    return _folded(f"    {prose}", "    ", style)


def _folded(line: str, margin: str, style: Style) -> str:
    return line if style.width is None else textwrap.fill(line, max(style.width, 40), subsequent_indent=margin, break_long_words=False, break_on_hyphens=False)


def _place(span: Span | None) -> str:
    return "" if span is None else f"{relative(span.file)}:{span.line}:{span.column}"


def _excerpt(span: Span | None, style: Style) -> list[str]:
    """The source line with the expression underlined."""
    line = linecache.getline(span.file, span.line).rstrip("\n") if span is not None else ""
    if span is None or not line.strip():
        return []
    end = span.end_column if span.end_line in (None, span.line) and span.end_column else len(line) + 1
    width = max(1, min(end, len(line) + 1) - span.column)
    number = str(span.line)
    return [f"    {paint(number + ' |', 'dim', style)} {line.expandtabs(1)}",
            f"    {' ' * len(number)} {paint('|', 'dim', style)} {' ' * (span.column - 1)}{paint('^' * width, 'warning', style)}"]


def gradient_bars(layers: Sequence[LayerRow]) -> Mapping[int, str]:
    """A bar for each layer on the spine: its gradient on a log scale from the smallest (at least 1e-6 of the largest) to the largest."""
    sizes = {row.order: row.gradient["norm"] for row in layers if row.on_spine and 0 < row.gradient.get("norm", 0.0) < math.inf}
    if not sizes:
        return {}
    top = max(sizes.values())
    bottom = max(min(sizes.values()), top * 1e-6)
    span = max(math.log10(top / bottom), 2.0)
    return {order: BAR[max(0, round((1 + math.log10(size / top) / span) * (len(BAR) - 1)))] for order, size in sizes.items()}


def _named(row: Row, causes: set[str], style: Style) -> str:
    """Codes of the findings that name the row: causes only where there is one, so that a column does not repeat every symptom."""
    codes = [code for code in row.codes if code in causes]
    return ", ".join(row.codes if style.verbose or not codes else codes)


def _table(layers: Sequence[LayerRow], causes: set[str], style: Style) -> str:
    bars = gradient_bars(layers)
    rows = [[row.first.module or "(root)", row.op, _weight(row.first), row.std, row.gradient, bars.get(row.first.order, ""), _named(row, causes, style)]
            for row in rows_of(layers)]
    left_out = ""
    if len(rows) > ROWS and not style.verbose:
        left_out = f"\n... {len(rows) - ROWS} more rows (--verbose shows all)"
        rows = rows[: ROWS // 2] + [["..."] + [""] * 6] + rows[-ROWS // 2:]
    return tabulate(rows, headers=["layer", "op", "weights (gain)", "std", "gradient", "", "findings"], tablefmt="simple", disable_numparse=True) + left_out


def _weight(row: LayerRow) -> str:
    if not row.weight:
        return ""
    scheme = str(row.weight.get("scheme", "")).replace(" (kaiming_uniform a=sqrt(5))", "")
    gain = row.weight.get("gain")
    return f"{scheme} ({gain:.2f})" if isinstance(gain, float) else scheme


def _probe(report: ReportData, style: Style) -> str:
    probe = "; ".join(f"{name}: {value}" for name, value in chosen(report))
    return "\n".join(paint(_folded(line, "", style), "dim", style) for line in [*(["probe  " + probe] if probe else []), *unseen(report)])


def _summary(report: ReportData, style: Style) -> str:
    counts = [f"{report.count(s)} {s}{'s' if report.count(s) != 1 and s != 'info' else ''}" for s in ("error", "warning", "info") if report.count(s)]
    hidden = f"; {report.suppressed} suppressed" if report.suppressed else ""
    flat = "; no cause was found, yet the loss hardly fell ({:.3g} to {:.3g})".format(*report.ends) if report.stalled else ""
    if not counts:
        return paint("no findings", "dim" if report.nothing_seen or flat else "healthy", style) + hidden + flat
    return ", ".join(counts) + hidden + flat
