"""doctor fix TARGET, doctor fix --from REPORT.json"""
from __future__ import annotations

import json

import click

from gradcheck_doctor.errors import ConfigError
from gradcheck_doctor.records.findings import ReportData


@click.command("fix", context_settings={"ignore_unknown_options": True})
@click.argument("target", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--from", "source", type=click.Path(), metavar="REPORT", help="Use the findings of a stored JSON report.")
@click.option("--run", "run_", is_flag=True, help="TARGET is a training script: run it first; its arguments follow after --.")
@click.option("--diff", is_flag=True, help="Print a unified diff and write nothing.")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if there is something to fix.")
@click.option("--unsafe-fixes", is_flag=True, help="Also fixes that change what the program does.")
@click.option("--verify/--no-verify", default=True, help="Keep only what is measured to help [default: verify].")
@click.option("--verbose", "-v", is_flag=True, help="Also say why candidates were not kept.")
def command(target: str | None, arguments: tuple[str, ...], source: str | None, run_: bool, diff: bool, check: bool, unsafe_fixes: bool, verify: bool,
            verbose: bool) -> int:
    """Turn findings into source edits, each proven by running (or probing) the edited file in a fresh process."""
    from gradcheck_doctor.repair import repair, write

    report = _stored(source) if source else _fresh(target, run_, arguments)
    file, expression = _file(report)
    result = repair(report, file, unsafe=unsafe_fixes, verify=verify, expression=expression, arguments=arguments)
    for finding, fix in result.kept:
        proof = f" ({fix.verified.status})" if verify else " (not verified)"
        click.echo(f"{'would fix' if diff or check else 'fixed'} {finding.code} {finding.rule}: {fix.prescription.title}{proof}", err=diff)
    if verbose or not result.kept:
        for finding, fix in result.refused:
            click.echo(f"not kept: {finding.code} {fix.prescription.title}: {fix.refusal or fix.verified.reason or fix.verified.status}", err=True)
    if not result.changed:
        click.echo("nothing to fix" if not any(f.severity != "info" for f in report.findings) else "no fix was kept; the file is unchanged", err=True)
        return int(any(f.severity != "info" for f in report.findings)) if not check else 0
    if diff:
        click.echo(result.diff(), nl=False)
        return 1
    if check:
        return 1
    write(result)
    return int(result.remaining > 0)


def _stored(path: str) -> ReportData:
    from gradcheck_doctor.records.codec import from_json

    try:
        with open(path, encoding="utf-8") as file:
            return from_json(json.load(file))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error


def _fresh(target: str | None, run_: bool, arguments: tuple[str, ...]) -> ReportData:
    """Findings gathered now, in this process for an audit, in a fresh one for a script."""
    if target is None:
        raise click.UsageError("give a TARGET, or --from REPORT.json")
    if run_:
        from gradcheck_doctor.treatments.tree import read
        from gradcheck_doctor.verify import measure

        report = measure(read(target).text, target, run=True, arguments=arguments)
        if report is None:
            raise ConfigError(f"{target} crashed or did not end; try: doctor run {target}")
        from dataclasses import replace

        from gradcheck_doctor.repair import _moved

        return replace(_moved(report, target), target=target)
    from gradcheck_doctor.session import audit_target
    from gradcheck_doctor.targets.resolve import resolve

    found = resolve(target)
    if len(found) > 1:
        raise ConfigError(f"{target} holds several models; name one: " + ", ".join(t.name for t in found))
    return audit_target(found[0]).report


def _file(report: ReportData) -> tuple[str, str]:
    """(file to edit, expression in it)."""
    file, _, expression = report.target.partition(":")
    if not file.endswith(".py"):
        raise ConfigError(f"{report.target} is no file; doctor fix edits the source of a file")
    return file, expression
