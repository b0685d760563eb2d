"""Formats of one line a finding: concise, GitHub annotations, markdown."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradcheck_doctor.records.codec import relative
from gradcheck_doctor.records.findings import SOURCE, Finding, ReportData

if TYPE_CHECKING:
    from gradcheck_doctor.report.render import Style

LIMIT = 10             # annotations of one level that GitHub shows a step
PROOF = {"improved": " (measured to help)", "no-effect": " (measured to be of no effect)", "worse": " (measured to harm)"}
LEVELS = {"error": "error", "warning": "warning", "info": "notice"}


def concise(reports: Sequence[ReportData], style: Style) -> str:
    """`file:line:col: CODE [severity] message`, then how many."""
    found = [f for r in reports for f in r.findings]
    lines = [f"{_where(f, r)}: {f.code} [{f.severity}] {f.message}{follows(f, r)}" for r in reports for f in r.findings]
    none = f"{reports[0].headline.capitalize()}." if reports and all(r.nothing_seen or r.stalled for r in reports) else "No findings."
    return "\n".join([*lines, f"Found {_counted(len(found), 'finding')}." if found else none])


def _where(finding: Finding, report: ReportData) -> str:
    place = finding.location
    return f"{relative(place.file)}:{place.line}:{place.column}" if place is not None else report.target


def follows(finding: Finding, report: ReportData) -> str:
    """Which finding explains this one, in brackets: a symptom needs no cure of its own."""
    cause = next((f for f in report.findings if finding.fingerprint in f.related), None)
    return f" (follows from {cause.code})" if cause is not None else ""


def chosen(report: ReportData) -> list[tuple[str, str]]:
    """What was chosen for the probe, as people want to know it."""
    return [(name, str(value)) for name, value in report.probe.items() if value not in (None, "") and name not in ("torch", SOURCE)]


def unseen(report: ReportData) -> list[str]:
    """What could not be observed, a line for each reason."""
    spots: dict[str, list[str]] = {}
    for spot in report.blind_spots:
        spots.setdefault(spot.reason, []).append(spot.module or "(root)")
    return [f"not observed: {', '.join(m[:6])}{' ...' if len(m) > 6 else ''}: {reason}" for reason, m in spots.items()]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def github(reports: Sequence[ReportData], style: Style) -> str:
    """Workflow commands; the gravest first, since GitHub shows ten of each level a step."""
    found = [(f, r) for r in reports for f in r.findings]
    lines, left = [], 0
    for severity, level in LEVELS.items():
        chosen = sorted(((f, r) for f, r in found if f.severity == severity), key=lambda pair: bool(follows(*pair)))     # causes first
        lines += [_annotation(level, f, r) for f, r in chosen[:LIMIT]]
        left += max(0, len(chosen) - LIMIT)
    if left:
        lines.append(f"::notice title=gradcheck-doctor::{_counted(left, 'more finding')}, see the whole report")
    return "\n".join(lines)


def _annotation(level: str, finding: Finding, report: ReportData) -> str:
    properties = [f"title={_escaped(f'{finding.code} {finding.rule}', True)}"]
    if finding.location is not None:
        place = finding.location
        properties += [f"file={_escaped(relative(place.file), True)}", f"line={place.line}", f"col={place.column}"]
        if place.end_line:
            properties.append(f"endLine={place.end_line}")
        if place.end_column and place.end_line in (None, place.line):
            properties.append(f"endColumn={place.end_column}")
    advice = follows(finding, report) or "".join(f"\ntry: {f.prescription.title}" for f in finding.fixes[:1])
    where = f"{finding.module}: " if finding.module else ""
    return f"::{level} {','.join(properties)}::{_escaped(where + finding.message + advice, False)}"


def _escaped(text: str, is_property: bool) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if is_property else text


def markdown(reports: Sequence[ReportData], style: Style) -> str:
    """Tables for a step summary or a merge request."""
    return "\n\n".join(_markdown(r) for r in reports)


def _markdown(report: ReportData) -> str:
    counts = f"{_counted(report.count('error'), 'error')}, {_counted(report.count('warning'), 'warning')}, {report.count('info')} info"
    head = f"## {report.target}: {report.headline}\n\n{counts}"
    blind = [line for spot in unseen(report) for line in ("", _cell(spot))]
    if not report.findings:
        return "\n".join([head, *blind])
    rows = [f"| {f.severity} | `{f.code}` {f.rule} | {_cell(f.module)} | {_cell(_where(f, report))} | {_cell(f.message + follows(f, report))} | "
            f"{_cell('; '.join(x.prescription.title + PROOF.get(x.verified.status, '') for x in f.fixes[:2]))} |" for f in report.findings]
    return "\n".join([head, "", "| severity | rule | module | where | what | cure |", "|---|---|---|---|---|---|", *rows, *blind])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
