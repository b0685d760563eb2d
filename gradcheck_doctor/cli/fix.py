"""doctor fix TARGET..., doctor fix --from REPORT.json"""
from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from gradcheck_doctor import baseline
from gradcheck_doctor.cli.options import Probe, Shared, probe_options, shared_options
from gradcheck_doctor.errors import ConfigError, TreatmentRefused
from gradcheck_doctor.integrations.script import on_terminate
from gradcheck_doctor.records.codec import relative
from gradcheck_doctor.records.findings import SEVERITIES, SOURCE, Finding, ReportData
from gradcheck_doctor.records.sources import digest, split_target, target_file

if TYPE_CHECKING:
    from gradcheck_doctor.repair import Repair


@click.command("fix")
@click.argument("targets", nargs=-1, metavar="TARGET... | SCRIPT -- [ARGS...]")
@click.option("--from", "source", type=click.Path(), metavar="REPORT", help="Use the findings of a JSON report, or of a run kept with run --store.")
@click.option("--run", "run_", is_flag=True, help="TARGET is a training script: run it first; its arguments follow after --.")
@click.option("--diff", is_flag=True, help="Print a unified diff and write nothing; exit 1 if there is one.")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if there is something to fix.")
@click.option("--unsafe-fixes", is_flag=True, help="Also fixes that change what the program does.")
@click.option("--verify/--no-verify", default=True, help="Keep only what is measured to help [default: verify].")
@click.option("--skip-unbuildable", is_flag=True, help="Pass over files without a model that can be built, as hooks do.")
@probe_options
@shared_options
@on_terminate()
def command(targets: tuple[str, ...], source: str | None, run_: bool, diff: bool, check: bool, unsafe_fixes: bool, verify: bool,
            skip_unbuildable: bool, probe: Probe, shared: Shared) -> int:
    """Turn findings into source edits, each proven by running (or probing) the edited file in a fresh process.

    The options of a probe (--batch, --loss, ...) are those of `doctor audit`; with --from they are the ones that the report was made with, unless given.
    With --format or --output the report says what became of every fix: its edits and figures before and after, or why it was not kept.
    """
    from gradcheck_doctor.cli.output import chosen_format, rendered, write
    from gradcheck_doctor.patch import patches, repaired
    from gradcheck_doctor.repair import repair

    dry = diff or check
    for target in () if source or skip_unbuildable else targets[:1] if run_ else targets:
        _editable(target_file(target), skip_unbuildable, dry)
    arguments: Sequence[str] = targets if source else targets[1:] if run_ else ()
    if source:
        reports, arguments = _stored(source, arguments)
    else:
        reports = _fresh(targets, run_, skip_unbuildable, probe)
    outdated = {target_file(r.target) for r in reports if source and _outdated(r)}
    wanted = _wanted(shared)
    results: list[Repair | None] = []
    for report in reports:
        file, expression = _file(report, skip_unbuildable, dry)
        options = probe.arguments() or shlex.split(str(report.probe.get("options", "")))
        results.append(repair(report, file, unsafe=unsafe_fixes, verify=verify, expression=expression, arguments=arguments, wanted=wanted,
                              options=options) if file else None)
    made, left = patches([r for r in results if r is not None])
    done = [replace(r, kept=[], after=r.before) if r is not None and any(r is x for x in left) else r for r in results]
    output: str | None = None
    if chosen_format(shared) is not None:
        output = rendered([repaired(report, r) if r is not None else report for report, r in zip(reports, done, strict=True)], shared)
    if diff and not (output and shared.output is None):
        sys.stdout.buffer.write(b"".join(p.diff() for p in made))
        sys.stdout.flush()
    for patch in () if dry else made:
        if patch.changed:
            patch.write()
    _say([r for r in done if r is not None], left, outdated, output is not None or diff, dry, verify, shared)
    if output is not None:
        write(output, shared.output, chosen_format(shared))
    if outdated and not any(r is not None and r.kept for r in done):
        return 2                                                    # a report of another text: nothing can be said of this one
    if dry:
        return int(any(p.changed for p in made))
    return _status(reports, done, left, wanted, shared)


def _say(repairs: Sequence[Repair], left: Sequence[Repair], outdated: Set[str], quiet_stdout: bool, dry: bool, verify: bool, shared: Shared) -> None:
    """One line a fix; on stderr where stdout belongs to a diff or a report. Why a fix of another text than today's was not kept is of no use.

    Beside fixes that were kept it is said what is left of the causes, and why.
    """
    for result in repairs:
        where = f"{relative(result.file)}: " if len(repairs) > 1 else ""
        for finding, fix in result.kept:
            proof = f" ({fix.verified.status})" if verify else " (not verified)"
            click.echo(f"{where}{'would fix' if dry else 'fixed'} {finding.code} {finding.rule}: {fix.prescription.title}{proof}", err=quiet_stdout)
        causes = [f for f in result.end.causes if f.severity != "info"] if result.end is not None else []
        codes = {f.code for f in causes}
        for finding, fix in result.refused:
            if shared.verbose or not result.kept and result.file not in outdated or finding.code in codes:
                reason = fix.refusal or fix.verified.reason or fix.verified.status
                click.echo(f"{where}not kept: {finding.code} {fix.prescription.title}: {reason}", err=True)
        for finding in result.unknown:
            click.echo(f"{where}no fix is known for {finding.code} {finding.rule} ({finding.severity}); mend it by hand", err=True)
        for finding in causes:
            click.echo(f"{where}left: {finding.code} {finding.rule} ({finding.severity})", err=True)
    for result in left:
        click.echo(f"{result.file}: another fix touches the same lines; run doctor fix once more", err=True)
    if not any(result.kept for result in repairs):
        click.echo("no fix was kept; nothing was changed" if repairs else "nothing to fix", err=True)


def _outdated(report: ReportData) -> bool:
    """Whether the file is another one than the report is about; said then."""
    file = target_file(report.target)
    if report.probe.get(SOURCE) in (None, "", digest(file)):
        return False
    again = "run: run it again" if report.kind == "run" else "audit: audit it again"
    click.echo(f"doctor: {file} changed since this {again}", err=True)
    return True


def _status(reports: Sequence[ReportData], repairs: Sequence[Repair | None], left: Sequence[Repair], wanted: Callable[[Finding], bool], shared: Shared) -> int:
    """1 when a wanted finding at or above --fail-on remains."""
    if shared.exit_zero or shared.config.fail_on == "never":
        return 0
    lowest = SEVERITIES.index(shared.config.fail_on)
    ends = [r.end if r is not None and (r.end is not None or r.changed) else report for report, r in zip(reports, repairs, strict=True)]
    return int(bool(left) or any(SEVERITIES.index(f.severity) >= lowest and wanted(f) for end in ends if end is not None for f in end.findings))


def _wanted(shared: Shared) -> Callable[[Finding], bool]:
    """Whether a finding is to be fixed: its rule is selected and it is not in the baseline.

    The proof looks at all rules, whatever is selected: a fix that brings another sickness is no fix.
    """
    from gradcheck_doctor.rules.engine import selected

    codes = selected(shared.config)
    known = baseline.read(shared.config.baseline) if shared.config.baseline else frozenset()

    def wanted(finding: Finding) -> bool:
        return finding.code in codes and finding.fingerprint not in known

    return wanted


def _editable(file: str, skip: bool, dry: bool) -> bool:
    """Whether a file can be edited.

    Raises:
        TreatmentRefused: it can't, and is not to be passed over.
    """
    from gradcheck_doctor.patch import writable
    from gradcheck_doctor.treatments.tree import read

    try:
        if os.path.isfile(file):
            read(file)
            if not dry:
                writable(file)
    except TreatmentRefused as error:
        if not skip:
            raise
        click.echo(f"doctor: passed over: {error}", err=True)
        return False
    return True


def _stored(path: str, arguments: Sequence[str]) -> tuple[list[ReportData], Sequence[str]]:
    """Reports in a file that name a source file and have something serious, and the script's arguments: those given, else a store's own."""
    from gradcheck_doctor.cli.stored import stored_reports

    stored = stored_reports(path)
    arguments = arguments or stored.arguments
    if len(stored.reports) == 1:
        return list(stored.reports), arguments
    serious = [r for r in stored.reports if r.verdict != "healthy"]
    for report in serious:
        if not _is_file(report):
            click.echo(f"doctor: passed over {report.target}: it is no file", err=True)
    return [r for r in serious if _is_file(r)], arguments


def _fresh(targets: Sequence[str], run_: bool, skip: bool, probe: Probe) -> list[ReportData]:
    """Findings gathered now, in this process for an audit, in a fresh one for a script."""
    if not targets:
        raise click.UsageError("give a TARGET, or --from REPORT.json")
    if run_:
        return [_ran(targets[0], targets[1:])]
    from gradcheck_doctor.cli.probing import probed

    return probed(targets, probe, skip)


def _ran(script: str, arguments: Sequence[str]) -> ReportData:
    from gradcheck_doctor.repair import _moved
    from gradcheck_doctor.treatments.tree import read
    from gradcheck_doctor.verify import measure

    errors: list[str] = []
    report = measure(read(script).text, script, run=True, arguments=arguments, errors=errors)
    if report is None:
        click.echo("\n".join(errors), err=True)
        raise ConfigError(f"{script} crashed or did not end; try: doctor run {shlex.join([script, *arguments])}")
    return replace(_moved(report, script), target=script)


def _is_file(report: ReportData) -> bool:
    return target_file(report.target).endswith(".py")


def _file(report: ReportData, skip: bool, dry: bool) -> tuple[str, str]:
    """(file to edit, expression in it); no file where nothing needs a cure, or where it is passed over."""
    file, expression = split_target(report.target)
    if report.verdict == "healthy":
        return "", expression
    if not _is_file(report):
        raise ConfigError(f"{report.target} is no file; doctor fix edits the source of a file")
    return (file if _editable(file, skip, dry) else ""), expression
