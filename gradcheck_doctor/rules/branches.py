"""Runs of layers that lie beside a skip."""
from __future__ import annotations

from collections.abc import Mapping

from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.flow import Run, mild, weight

SHORT = 6      # layers of a branch that may start quiet or loud: the stream beside it carries signal and gradient


def mild_run(recording: Recording, run: Run) -> str | None:
    """Cap for what is said of one run: as `mild`, and info in a short residual branch."""
    return "info" if len(run.layers) <= SHORT and in_branch(recording, run) else mild(recording)


def in_branch(recording: Recording, run: Run) -> bool:
    """What enters the run is added again behind it, unchanged, and is itself made by a layer: a skip around the whole network saves none of its layers."""
    producers = {o.index: o.producers for o in recording.operations}
    before, behind = _reached(run.layers[0].index, producers), _reached(run.layers[-1].index, recording.consumers)
    around = {p for i in behind if recording.operations[i].attributes.get("residual") for p in producers[i] if p in before}
    return any(weight(recording, recording.operations[i]) is not None for p in around for i in {p, *_reached(p, producers)})


def _reached(index: int, edges: Mapping[int, tuple[int, ...]]) -> set[int]:
    """Operations that can be reached from one along `edges`, without itself."""
    found, stack = set[int](), [index]
    while stack:
        for other in edges.get(stack.pop(), ()):
            if other not in found:
                found.add(other)
                stack.append(other)
    return found
