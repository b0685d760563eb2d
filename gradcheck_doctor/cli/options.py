"""Options that audit, run and fix share."""
from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import click

from gradcheck_doctor.cli.streams import check_writable
from gradcheck_doctor.config import Config, load
from gradcheck_doctor.records.findings import SOURCE, ReportData
from gradcheck_doctor.records.sources import digest, target_file
from gradcheck_doctor.report.render import FORMATS


@dataclass(frozen=True)
class Shared:
    """Settings and where the report goes."""

    config: Config
    format: str | None
    output: str | None
    write_baseline: str | None
    exit_zero: bool
    quiet: bool
    verbose: bool
    color: str


@dataclass(frozen=True)
class Probe:
    """How an audit builds and probes its models."""

    batch: str | None
    loss: str | None
    optimizer: str | None
    inputs: tuple[str, ...]
    steps: int
    overfit: bool
    device: str | None
    seed: int

    def arguments(self) -> list[str]:
        """The command line that gives these options again; those that stand at their defaults are left out."""
        named = [("--batch", self.batch), ("--loss", self.loss), ("--optimizer", self.optimizer), *(("--input", i) for i in self.inputs),
                 ("--steps", str(self.steps) if self.steps else None), ("--device", self.device), ("--seed", str(self.seed) if self.seed else None)]
        return [part for name, value in named if value is not None for part in (name, value)] + ["--overfit"] * self.overfit

    def noted(self, report: ReportData) -> ReportData:
        """The report, saying with which options it was made and of which source, so that `doctor fix` can measure in the same way."""
        file = target_file(report.target)
        more = {"options": shlex.join(self.arguments()), SOURCE: digest(file) if file.endswith(".py") else ""}
        return replace(report, probe={**report.probe, **{k: v for k, v in more.items() if v}})


_PROBE = (
    click.option("--batch", help="Expression for the batch, in the target's namespace."),
    click.option("--loss", help="Expression for the loss function."),
    click.option("--optimizer", help="Expression for the optimizer of --steps; `model` is the model."),
    click.option("--input", "inputs", multiple=True, metavar="SPEC", help="float32[32,3,224,224], int64[8,128]<50257, name=SPEC; repeatable."),
    click.option("--steps", type=click.IntRange(0), default=0, help="Train a throw-away copy that many steps and judge what happens."),
    click.option("--overfit", is_flag=True, help="Also try to learn the batch by heart: 300 steps of a throw-away copy."),
    click.option("--device", help="Device to build the model on."),
    click.option("--seed", type=int, default=0, show_default=True),
)


def probe_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a probe and pass them on as one `probe`."""
    @functools.wraps(function)
    def wrapper(*args: Any, batch: str | None, loss: str | None, optimizer: str | None, inputs: tuple[str, ...], steps: int, overfit: bool,
                device: str | None, seed: int, **kwargs: Any) -> Any:
        return function(*args, probe=Probe(batch, loss, optimizer, inputs, steps, overfit, device, seed), **kwargs)

    for option in reversed(_PROBE):
        wrapper = option(wrapper)
    return wrapper


def _split(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part.strip() for item in value for part in item.split(",") if part.strip())


_OPTIONS = (
    click.option("--select", multiple=True, callback=_split, help="Codes, prefixes (GD2) or names to apply, instead of all."),
    click.option("--ignore", multiple=True, callback=_split, help="Codes, prefixes or names to leave out."),
    click.option("--extend-select", multiple=True, callback=_split, help="Codes to apply in addition."),
    click.option("--severity", type=click.Choice(["info", "warning", "error"]), help="Lowest severity shown."),
    click.option("--fail-on", type=click.Choice(["error", "warning", "info", "never"]), help="Exit 1 from this severity on [default: warning]."),
    click.option("--exit-zero", is_flag=True, help="Exit 0 whatever is found."),
    click.option("--format", "format_", type=click.Choice(list(FORMATS)), help="Output format [default: text, or from --output's suffix]."),
    click.option("--output", "-o", type=click.Path(dir_okay=False), help="Write the report to this file."),
    click.option("--baseline", type=click.Path(), help="Hide findings listed in this file."),
    click.option("--write-baseline", type=click.Path(dir_okay=False), help="Write today's findings to this file."),
    click.option("--config", "config_path", type=click.Path(), help="pyproject.toml to read instead of the nearest."),
    click.option("--quiet", "-q", is_flag=True, help="Findings only."),
    click.option("--verbose", "-v", is_flag=True, help="Everything, and tracebacks of errors."),
    click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto"),
)


def shared_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options and pass them on as one `shared`."""
    @functools.wraps(function)
    def wrapper(*args: Any, select: Any, ignore: Any, extend_select: Any, severity: Any, fail_on: Any, exit_zero: bool, format_: Any, output: Any,
                baseline: Any, write_baseline: Any, config_path: Any, quiet: bool, verbose: bool, color: str, **kwargs: Any) -> Any:
        config = load(config_path)
        given = {"select": select, "ignore": (*config.ignore, *ignore) if ignore else (), "extend_select": extend_select, "severity": severity,
                 "fail_on": fail_on, "baseline": baseline}
        config = replace(config, **{k: v for k, v in given.items() if v})
        _check_rules(config)
        output = None if output == "-" else output              # stdout, as elsewhere
        for path in (output, write_baseline):
            check_writable(path)
        return function(*args, shared=Shared(config, format_, output, write_baseline, exit_zero, quiet, verbose, color), **kwargs)

    for option in reversed(_OPTIONS):
        wrapper = option(wrapper)
    return wrapper


def _check_rules(config: Config) -> None:
    """An unknown rule is said before anything is built."""
    from gradcheck_doctor.rules.registry import expand, find

    expand((*config.select, *config.ignore, *config.extend_select, *(code for codes in config.per_file_ignores.values() for code in codes)))
    for code in config.thresholds:
        find(code)
