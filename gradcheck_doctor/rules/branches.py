"""Runs of layers that lie beside a skip."""
from __future__ import annotations

from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.records.ways import before, behind
from gradcheck_doctor.rules.flow import Run, weight
from gradcheck_doctor.rules.progress import mild

SHORT = 6      # layers of a branch that may start quiet or loud: the stream beside it carries signal and gradient


def mild_run(recording: Recording, run: Run) -> str | None:
    """Cap for what is said of one run: as `mild`, and info in a short residual branch."""
    return mild(recording) or ("info" if len(run.layers) <= SHORT and in_branch(recording, run) else None)


def in_branch(recording: Recording, run: Run) -> bool:
    """What enters the run is added again behind it, unchanged, and is itself made by a layer: a skip around the whole network saves none of its layers."""
    feeding = {o.index for o in before(recording, [run.layers[0].index])}
    around = {p for o in behind(recording, [run.layers[-1].index]) if o.attributes.get("residual") for p in o.producers if p in feeding}
    return any(weight(recording, o) is not None for o in (*map(recording.operation, around), *before(recording, around)))
