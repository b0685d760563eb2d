"""Audits of targets that were named on the command line."""
from __future__ import annotations

from collections.abc import Sequence

import click

from gradcheck_doctor.cli.options import Probe
from gradcheck_doctor.cli.streams import stdout_to_stderr
from gradcheck_doctor.config import Config
from gradcheck_doctor.records.findings import ReportData
from gradcheck_doctor.session import audit_target
from gradcheck_doctor.targets.resolve import Options, buildable, passed_over, resolve, told


def probed(targets: Sequence[str], probe: Probe, skip: bool, config: Config | None = None, broken: list[str] | None = None) -> list[ReportData]:
    """One report for each model that the targets name; with `skip` what can't be built is passed over, and said. So is, among others, what can't be probed.

    Args:
        broken: gets what was passed over in a folder although something is wrong with it.
    """
    options = Options(batch=probe.batch, loss=probe.loss, optimizer=probe.optimizer, inputs=probe.inputs, device=probe.device, seed=probe.seed)
    build = buildable if skip else resolve

    def say(text: str, wrong: bool) -> None:
        click.echo(text, err=True)
        if wrong and broken is not None:
            broken.append(text)

    with stdout_to_stderr():
        found = [target for spec in targets for target in build(spec, options, say=say)]
        reports, failed = list[ReportData](), list[Exception]()
        for target in found:
            try:
                reports.append(probe.noted(audit_target(target, config=config, steps=probe.steps, overfit=probe.overfit).report))
            except Exception as error:
                failed.append(error)
                if len(failed) == len(found):                           # nothing is left to report
                    raise
                say(passed_over(target.name, told(error)), True)
        return reports
