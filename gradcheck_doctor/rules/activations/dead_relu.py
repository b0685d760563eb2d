from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.records.summaries import Units
from gradcheck_doctor.records.ways import is_output
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import back, location
from gradcheck_doctor.rules.initialisation.cures import initialise
from gradcheck_doctor.rules.optimizer.readings import largest_lr, lowered
from gradcheck_doctor.rules.progress import learned, progress, stays_down
from gradcheck_doctor.theory.activations import activation

ENOUGH = 1000         # samples for a statement about single units: one that is active 1 % of the time is silent with probability e^-10
PART = 1 / 3           # of a layer, below which units that died are no cause: nothing is gained where they are given a slope
RISE = 0.2             # dead share must have grown by this to be called dying
WHOLE_LAYER = 16      # samples for the statement that a whole layer is silent


class DeadRelu(Rule):
    """Units of a ReLU layer are 0 for every sample: their gradient is exactly 0 and they never come back.

    What it measures: fraction of a layer's units whose largest output over all samples (and positions) seen is not above 0; over at least
    1,000 samples, or 16 when the whole layer is silent. In a training run the last window of observed steps counts.

    Why it matters: a large step or a bad start pushes the weighted sum below zero for every instance; the unit then has no gradient. A layer
    that is wholly dead makes the output constant and cuts off everything below it.

    Less than a third of a layer is info in a run, and less than half where the loss fell by a fifth and stays down.

    When it is harmless: sparse is not dead (60 to 70 % zeros is health); pruned nets, padded channels, features of rare classes, a net that
    learns all the same.

    Sources: Géron, ch. 11; Lu et al. 2019 (arXiv:1903.06733); SageMaker Debugger's bar of 50 %.
    """

    code = "GD201"
    name = "dead-relu"
    summary = "ReLU units that are 0 for every sample"
    threshold = Threshold(0.10, 0.50, "fraction of the layer's units", "SageMaker Debugger: 0.5; 0.1 after the trials in this project")
    order = 400
    explains = ("GD301", "GD303", "GD208", "GD608", "GD702", "GD707", "GD307", "GD304", "GD706")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for operation in recording.operations:
            theory = activation(operation.op)
            if operation.category != "activation" or theory is None or not theory.can_die or is_output(recording, operation):
                continue
            units = (operation.units_last if recording.kind == "run" else operation.units) or operation.units
            if units is None or units.units == 0:
                continue
            silent = units.dead == units.units
            if units.samples < (WHOLE_LAYER if silent else ENOUGH):
                yield Unmeasured(operation.module, f"only {units.samples} samples of each unit were seen, {ENOUGH} are needed")
                continue
            yield self._judge(recording, operation, units, silent)

    def _judge(self, recording: Recording, operation: Operation, units: Units, silent: bool) -> Measurement:
        first = operation.units_first or units
        born = first.dead_fraction
        cap = None
        if learned(recording):
            cap = "info" if units.dead_fraction < 0.9 else "warning"
        elif recording.kind == "run" and (units.dead_fraction < PART or units.dead_fraction < 0.5 and units.dead_fraction - born < RISE):
            cap = "info"                                    # also units that were silent from the start in a deep He net: not dying
        elif recording.kind == "run" and units.dead_fraction < 0.5 and (gone := progress(recording)) is not None and gone >= 0.2 and stays_down(recording):
            cap = "info"                                    # the loss went down and stays down: one with a floor above 0 (a likelihood) falls no further
        elif not silent and units.dead_fraction < 0.5 and recording.kind == "audit":
            cap = "info"
        return Measurement(
            value=units.dead_fraction, module=operation.module, op=operation.op, location=location(recording, operation),
            operations=(operation.index,), cap=cap,
            evidence={"dead_fraction": units.dead_fraction, "dead_units": units.dead, "units": units.units, "samples": units.samples,
                      "dead_at_start": born, "form": "born dead" if born >= 0.5 else "dying"})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        start = f", {e['dead_at_start']:.0%} before the first update" if e["form"] == "dying" and e["dead_at_start"] < m.value else ", from the start"
        return f"{e['dead_units']} of {e['units']} units are 0 for all {e['samples']} samples ({m.value:.2f}, limit {{limit}}){start}"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        operation = recording.operations[m.operations[0]]
        layer = back(recording, operation)
        cures = [Prescription("replace-activation", "Use LeakyReLU(0.01), which keeps a slope for negative sums", kind="activation",
                              modules=(operation.module,), span=m.location, arguments={"to": "leaky_relu", "slope": 0.01})]
        if layer is not None and layer.category == "layer" and m.evidence["form"] == "born dead":
            cures = [*initialise(recording, [layer], [operation]), *cures]
        if m.evidence["form"] == "dying" and (chosen := largest_lr(recording)) is not None:
            cures = [*lowered(*chosen, 10), *cures]
        return tuple(cures)
