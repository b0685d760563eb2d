"""doctor run SCRIPT [ARGS...]"""
from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from gradcheck_doctor.cli.loading import loading
from gradcheck_doctor.cli.options import Shared, shared_options
from gradcheck_doctor.cli.streams import stdout_to_stderr
from gradcheck_doctor.records.findings import SOURCE
from gradcheck_doctor.records.interval import interval
from gradcheck_doctor.records.sources import digest
from gradcheck_doctor.report.render import MACHINE, format_of

if TYPE_CHECKING:
    from gradcheck_doctor.integrations.script import ScriptResult


@click.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-m", "module", is_flag=True, help="SCRIPT is a module, as in python -m.")
@click.option("--every", default=None, help="Observe the first 8 steps and each N-th, or auto: the first 8, then rarer, within 1 % of the time [default: auto].")
@click.option("--max-steps", type=click.IntRange(1), help="Stop the script after that many optimizer steps.")
@click.option("--store", type=click.Path(), metavar="FILE", help="Keep what is observed in this SQLite file, as it happens; read it with doctor report.")
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@shared_options
def command(script: str, arguments: tuple[str, ...], module: bool, every: str | None, max_steps: int | None, store: str | None, shared: Shared) -> int:
    """Run a training script, unmodified, and report what was seen of its training.

    Options of doctor stand before SCRIPT, everything after it belongs to the script.
    """
    from gradcheck_doctor.cli.output import deliver
    from gradcheck_doctor.session import examine

    if script.startswith("-") and not module:
        raise click.UsageError(f"no such option {script}; options of doctor stand before SCRIPT, those of the script after it")
    chosen = shared.format or (format_of(shared.output) if shared.output else None) or "text"
    steps = interval(every, "--every") if every is not None else shared.config.every
    with stdout_to_stderr(chosen in MACHINE and shared.output is None):
        result = _observed(script, arguments, module, steps, max_steps, store, shared)
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


def _observed(script: str, arguments: tuple[str, ...], module: bool, every: int | str, max_steps: int | None, store: str | None,
              shared: Shared) -> ScriptResult:
    """Run the script, with a store and a live line where they are wanted (by the first process of several)."""
    with loading():
        from gradcheck_doctor.integrations.live import LiveLine
        from gradcheck_doctor.integrations.script import run_script
        from gradcheck_doctor.observe.distributed import launched_rank
        from gradcheck_doctor.session import examine

    listeners: list[Any] = []
    first = launched_rank() == 0
    if store is not None and first:
        listeners.append(_store(store, script, arguments, module))
    with contextlib.ExitStack() as stack:
        if first and not shared.quiet and sys.stderr.isatty():
            line = LiveLine(sys.stderr, lambda recording: examine(recording, script, shared.config).report)
            listeners.append(line)
            stack.enter_context(line.beside_the_script())
        return run_script(None if module else script, script if module else None, list(arguments), every=every, max_steps=max_steps, listeners=listeners)


def _store(path: str, script: str, arguments: tuple[str, ...], module: bool) -> Any:
    from gradcheck_doctor import __version__
    from gradcheck_doctor.store.writer import Store

    probe = {"script": f"-m {script}"} if module else {"script": script, SOURCE: digest(script)}
    facts = {"version": __version__, "target": script, "module": module, "arguments": arguments, "folder": os.getcwd()}
    return Store(os.path.abspath(path), facts, lambda message: click.echo(f"doctor: {message}", err=True), probe=probe)
