"""doctor audit TARGET..."""
from __future__ import annotations

import click

from gradcheck_doctor.cli.loading import loading
from gradcheck_doctor.cli.options import Probe, Shared, probe_options, shared_options


@click.command("audit")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@probe_options
@click.option("--skip-unbuildable", is_flag=True, help="Pass over files without a model that can be built, as hooks do.")
@shared_options
def command(targets: tuple[str, ...], probe: Probe, skip_unbuildable: bool, shared: Shared) -> int:
    """Build the models of TARGET, probe each with one batch and report what keeps it from training.

    TARGET is path.py, path.py:NAME, path.py:EXPR, package.module:EXPR or a folder.
    """
    from gradcheck_doctor.cli.output import deliver
    with loading():
        from gradcheck_doctor.cli.probing import probed

    broken: list[str] = []
    status = deliver(probed(targets, probe, skip_unbuildable, shared.config, broken), shared)
    return status or (2 if broken and not skip_unbuildable else 0)
