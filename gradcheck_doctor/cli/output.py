"""Filtering, writing and the exit status."""
from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace

import click

from gradcheck_doctor import baseline
from gradcheck_doctor.cli.options import Shared
from gradcheck_doctor.cli.streams import fitting, unwritable
from gradcheck_doctor.errors import ConfigError
from gradcheck_doctor.records.findings import SEVERITIES, ReportData
from gradcheck_doctor.report.render import RuleInfo, Style, format_of, render
from gradcheck_doctor.rules.registry import rules

WITH_EDITS = frozenset({"json", "sarif", "rdjson"})


def deliver(reports: Sequence[ReportData], shared: Shared) -> int:
    """Write the reports and return the exit status."""
    if shared.write_baseline:
        baseline.write(shared.write_baseline, [f for r in reports for f in r.findings])
    reports = [_filtered(r, shared) for r in reports]
    status = exit_status(reports, shared)
    if chosen_format(shared) in WITH_EDITS:
        from gradcheck_doctor.patch import with_edits

        reports = [with_edits(r) for r in reports]
    try:
        write(rendered(reports, shared), shared.output, chosen_format(shared))
    except ConfigError:
        click.echo(rendered(reports, replace(shared, format="text")), err=True)
        raise
    return status


def chosen_format(shared: Shared) -> str | None:
    """What --format, else the suffix of --output asks for."""
    return shared.format or (format_of(shared.output) if shared.output else None)


def rendered(reports: Sequence[ReportData], shared: Shared) -> str:
    """The reports in the chosen format, findings below --severity left out."""
    lowest = SEVERITIES.index(shared.config.severity)
    shown = [replace(r, findings=tuple(f for f in r.findings if SEVERITIES.index(f.severity) >= lowest)) for r in reports]
    style = Style(rule_infos(), verbose=shared.verbose, quiet=shared.quiet, colour=_coloured(shared), width=_width(shared))
    return render(shown, chosen_format(shared) or "text", style)


def rule_infos() -> dict[str, RuleInfo]:
    """What machine formats say about each rule, by code."""
    return {r.code: RuleInfo(r.code, r.name, r.summary, r.page()) for r in rules()}


def write(text: str, output: str | None, format: str | None) -> None:
    """A report of that format (None: text) to a file, or to stdout."""
    if output is None:
        if not text:
            return
        click.echo(fitting(text, sys.stdout.encoding, format or "text"), color=True)
        return
    try:
        with open(output, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text + "\n")
    except OSError as error:
        raise unwritable(output, error) from error


def _filtered(report: ReportData, shared: Shared) -> ReportData:
    if not shared.config.baseline:
        return report
    known = baseline.read(shared.config.baseline)
    kept = tuple(f for f in report.findings if f.fingerprint not in known)
    return replace(report, findings=kept, suppressed=report.suppressed + len(report.findings) - len(kept))


def exit_status(reports: Sequence[ReportData], shared: Shared) -> int:
    """0, or 1 when a finding is at or above --fail-on."""
    if shared.exit_zero or shared.config.fail_on == "never":
        return 0
    lowest = SEVERITIES.index(shared.config.fail_on)
    return int(any(SEVERITIES.index(f.severity) >= lowest for r in reports for f in r.findings))


def _coloured(shared: Shared) -> bool:
    if shared.color != "auto":
        return shared.color == "always"
    return shared.output is None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _width(shared: Shared) -> int | None:
    """Columns of the terminal, or what COLUMNS says; None where the report goes to a file or a pipe."""
    if shared.output is None and (sys.stdout.isatty() or os.environ.get("COLUMNS")):
        return shutil.get_terminal_size().columns
    return None
