from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.records.ways import is_output
from gradcheck_doctor.rules.attention import hard_attention
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import back, is_gate, location, norm_kind
from gradcheck_doctor.rules.initialisation.cures import initialise
from gradcheck_doctor.rules.progress import mild
from gradcheck_doctor.theory.activations import activation


class SaturatedActivation(Rule):
    """Units of a bounded activation sit on its flat ends, where the derivative is below 1 % of its largest.

    What it measures: fraction of a layer's units that are beyond |x| = 2.99 (tanh) or 4.58 (sigmoid) for at least 95 % of the samples seen; behind a
    convolution, whose channels are hardly flat at all positions, the fraction of all values if that is more. Of the softmax over attention scores, before
    the first update: the sum of squares of its rows, 1 where each row chooses one key.

    Why it matters: the gradient through such a unit is a hundredth of what it could be, at every layer.

    When it is harmless: gates that learned to be hard, the last layer of a classifier, quantised nets, a run that learns.

    Sources: Glorot and Bengio 2010; Vaswani et al. 2017 (arXiv:1706.03762, 3.2.1) on scaled scores; Géron, ch. 11; the bars were measured (derivative below 1 %).
    """

    code = "GD202"
    name = "saturated-activation"
    summary = "bounded activations stuck on their flat ends"
    threshold = Threshold(0.5, 0.9, "fraction of the layer's units", "half of the layer, the usual layer bar")
    order = 410
    explains = ("GD301", "GD208", "GD303", "GD608")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for operation in recording.operations:
            theory = activation(operation.op)
            units = (operation.units_last if recording.kind == "run" else operation.units) or operation.units
            if theory is None or not theory.saturating or units is None or operation.category != "activation":
                continue
            if units.samples < 16 or is_output(recording, operation) or is_gate(recording, operation):
                continue
            share = units.flat_share if len(operation.shape) > 2 else 0.0
            yield Measurement(
                value=max(units.saturated_fraction, share), module=operation.module, op=operation.op, location=location(recording, operation),
                operations=(operation.index,), cap=mild(recording),
                evidence={"saturated_fraction": units.saturated_fraction, "saturated_units": units.saturated, "units": units.units,
                          "samples": units.samples, "flat_share": units.flat_share})
        for hard in hard_attention(recording):
            place = location(recording, hard.product if not hard.divided else hard.softmax)
            yield Measurement(
                value=hard.chosen, module=hard.softmax.module, op="softmax", location=place, operations=(hard.softmax.index, hard.product.index),
                modules=tuple(dict.fromkeys((hard.softmax.module, *(o.module for o in hard.layers)))), cap=mild(recording) or "warning",
                evidence={"chosen": hard.chosen, "spread": hard.spread, "divided": hard.divided, "width": hard.width})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        if "chosen" in e:
            spread = "" if e["spread"] is None else f" (their standard deviation is {e['spread']:.3g})"
            cause = "" if e["divided"] else f": they are not divided by sqrt({e['width']})"
            return (f"each row of the first softmax over attention scores chooses one key, its squares sum to {m.value:.2f} (limit {{limit}}), so that hardly a "
                    f"gradient goes back to queries and keys; the scores are too large{spread}{cause}")
        if m.value > e["saturated_fraction"]:
            return f"{m.value:.0%} of the values of {m.op} are saturated (limit {{limit}}): their derivative is below 1 % of its largest"
        return (f"{e['saturated_units']} of {e['units']} {m.op} units are saturated for at least 95 % of {e['samples']} samples "
                f"({m.value:.2f}, limit {{limit}}): their derivative is below 1 % of its largest")

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        operation = recording.operations[m.operations[0]]
        if "chosen" in m.evidence:
            return () if m.evidence["divided"] or not m.evidence["width"] else (
                Prescription("scale-scores", f"Divide the scores by sqrt({m.evidence['width']})", kind="model", span=recording.operations[m.operations[1]].called,
                             modules=(m.module,), arguments={"width": m.evidence["width"]}),)
        layer = back(recording, operation)
        norm = Prescription("insert-norm", f"Normalise in front of {operation.op}", kind="norm",
                            modules=(layer.module if layer is not None else operation.module,), arguments={"norm": norm_kind(recording)})
        return (*initialise(recording, [layer], [operation]), norm) if layer is not None and layer.category == "layer" else (norm,)
