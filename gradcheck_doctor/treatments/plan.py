"""From findings to edits: each prescription planned, or refused with its reason."""
from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.packs import complain, described, load
from gradcheck_doctor.records.findings import Finding, Fix, ReportData
from gradcheck_doctor.treatments import (
    activations,
    architecture,
    axes,
    branches,
    clipping,
    gradients,
    holdings,
    init_calls,
    initialise,
    layers,
    losses,
    modes,
    nonlinearity,
    precision,
    registration,
    schedules,
    settings,
    training,
)
from gradcheck_doctor.treatments.context import Context, Planner

GROUP = "gradcheck_doctor.treatments"
PLANNERS: Mapping[str, Planner] = {**training.PLANNERS, **activations.PLANNERS, **architecture.PLANNERS, **axes.PLANNERS, **branches.PLANNERS,
                                   **initialise.PLANNERS, **init_calls.PLANNERS, **layers.PLANNERS, **losses.PLANNERS, **holdings.PLANNERS,
                                   **clipping.PLANNERS, **gradients.PLANNERS,
                                   **modes.PLANNERS, **nonlinearity.PLANNERS, **precision.PLANNERS, **registration.PLANNERS, **schedules.PLANNERS, **settings.PLANNERS}


@functools.cache
def planners() -> Mapping[str, Planner]:
    """Every treatment by name: ours, and third parties' by the entry-point group; the entry point's name is the treatment's."""
    found = dict(PLANNERS)
    for point, loaded in load(GROUP):
        if not callable(loaded):
            complain(f"{described(point)} is left out: a treatment is a function of (context, finding, prescription)")
        elif point.name in found:
            complain(f"{described(point)} is left out: there is a treatment of that name already")
        else:
            found[point.name] = loaded
    return found


def planned(report: ReportData, file: str, *, unsafe: bool) -> Iterator[tuple[Finding, Fix]]:
    """(finding, fix with edits or a refusal) for every serious finding, root causes first, the preferred cure first."""
    context = Context(file, report.layers)
    for finding in report.findings:
        if finding.severity == "info":
            continue
        for fix in finding.fixes:
            yield finding, _planned(context, finding, fix, unsafe)


def _planned(context: Context, finding: Finding, fix: Fix, unsafe: bool) -> Fix:
    prescription, fix = fix.prescription, replace(fix, edits=())           # edits that a report brought along were planned with other options
    planner = planners().get(prescription.treatment)
    if prescription.safety != "safe" and not unsafe:
        return replace(fix, refusal="unsafe: it changes what the program does; --unsafe-fixes allows it")
    if planner is None:
        return replace(fix, refusal="no source edit is known for this; " + prescription.title)
    try:
        edits = planner(context, finding, prescription)
        return replace(fix, edits=tuple(context.tree(edits[0].span.file).with_imports(edits)) if edits else ())
    except TreatmentRefused as error:
        return replace(fix, refusal=str(error))
    except Exception as error:
        whose = "failed, please report it" if prescription.treatment in PLANNERS else "of another package failed"
        return replace(fix, refusal=f"the treatment {prescription.treatment!r} {whose}: {type(error).__name__}: {error}")
