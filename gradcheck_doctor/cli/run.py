"""doctor run SCRIPT [ARGS...]"""
from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import click

from gradcheck_doctor.cli.options import Shared, shared_options
from gradcheck_doctor.report.render import MACHINE, format_of


@click.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-m", "module", is_flag=True, help="SCRIPT is a module, as in python -m.")
@click.option("--every", default=None, help="Observe each N-th step, or auto.")
@click.option("--max-steps", type=click.IntRange(1), help="Stop the script after that many optimizer steps.")
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@shared_options
def command(script: str, arguments: tuple[str, ...], module: bool, every: str | None, max_steps: int | None, shared: Shared) -> int:
    """Run a training script, unmodified, and report what was seen of its training.

    Options of doctor stand before SCRIPT, everything after it belongs to the script.
    """
    from gradcheck_doctor.cli.output import deliver
    from gradcheck_doctor.integrations.script import run_script
    from gradcheck_doctor.session import examine

    chosen = shared.format or (format_of(shared.output) if shared.output else None) or "text"
    with _stdout_to_stderr(chosen in MACHINE and shared.output is None):
        result = run_script(None if module else script, script if module else None, list(arguments), every=_every(every or shared.config.every),
                            max_steps=max_steps)
    if result.crash:
        click.echo(result.crash, err=True, nl=False)
    if result.rank:
        return 2 if result.crash else result.status
    report = examine(result.recording, script, shared.config).report
    status = deliver([report], shared)
    if result.crash:
        click.echo(f"doctor: {script} raised; the report shows what was seen until then", err=True)
        return 2
    return status or result.status


def _every(value: str | int) -> str | int:
    if value == "auto" or isinstance(value, int):
        return value
    if not value.isdigit() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a positive number nor auto", param_hint="--every")
    return int(value)


@contextlib.contextmanager
def _stdout_to_stderr(active: bool) -> Iterator[None]:
    """A machine format on stdout must parse: the script's own output goes to stderr then."""
    if not active:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield
