"""doctor audit TARGET..."""
from __future__ import annotations

import click

from gradcheck_doctor.cli.options import Shared, shared_options


@click.command("audit")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option("--batch", help="Expression for the batch, in the target's namespace.")
@click.option("--loss", help="Expression for the loss function.")
@click.option("--optimizer", help="Expression for the optimizer of --steps; `model` is the model.")
@click.option("--input", "inputs", multiple=True, metavar="SPEC", help="float32[32,3,224,224], int64[8,128]<50257, name=SPEC; repeatable.")
@click.option("--steps", type=click.IntRange(0), default=0, help="Train a throw-away copy that many steps and judge what happens.")
@click.option("--overfit", is_flag=True, help="Also try to learn the batch by heart: 300 steps of a throw-away copy.")
@click.option("--device", help="Device to build the model on.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--skip-unbuildable", is_flag=True, help="Pass over files without a model that can be built, as hooks do.")
@shared_options
def command(targets: tuple[str, ...], batch: str | None, loss: str | None, optimizer: str | None, inputs: tuple[str, ...], steps: int, overfit: bool,
            device: str | None, seed: int, skip_unbuildable: bool, shared: Shared) -> int:
    """Build the models of TARGET, probe each with one batch and report what keeps it from training.

    TARGET is path.py, path.py:NAME, path.py:EXPR, package.module:EXPR or a folder.
    """
    from gradcheck_doctor.cli.output import deliver
    from gradcheck_doctor.session import audit_target
    from gradcheck_doctor.targets.resolve import Options, buildable, resolve

    options = Options(batch=batch, loss=loss, optimizer=optimizer, inputs=inputs, device=device, seed=seed)
    if skip_unbuildable:
        found = [target for spec in targets for target in buildable(spec, options, say=lambda text: click.echo(text, err=True))]
    else:
        found = [target for spec in targets for target in resolve(spec, options)]
    return deliver([audit_target(t, config=shared.config, steps=steps, overfit=overfit).report for t in found], shared)
