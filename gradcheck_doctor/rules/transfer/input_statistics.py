from __future__ import annotations

import math
from collections.abc import Iterator

from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import location, weight
from gradcheck_doctor.rules.progress import mild
from gradcheck_doctor.theory.schemes import DEFAULT


class InputStatistics(Rule):
    """The data look other than those a pretrained model was trained on: most likely they are scaled or normalised in another way.

    What it measures: at the first batch normalisation of a model that brings running statistics along, on the first batch of 8 samples or more: the
    median over the channels of |batch mean - running mean| in running standard deviations, or of |log(batch std / running std)|, whichever is larger.

    Why it matters: a pretrained network sees pixels in [0, 255] where it knows values around 0: its features mean nothing, and frozen statistics do not
    adapt to it.

    When it is harmless: normalisation in training mode, which uses the batch's own statistics; other data on purpose, in a run that learns; random
    example inputs: so an audit says info. A new layer in front of the old normalisation is not judged.

    Sources: torchvision's documentation: each set of weights names its transforms; Ioffe and Szegedy 2015 (arXiv:1502.03167).
    """

    code = "GD903"
    name = "input-statistics"
    summary = "the data differ from what a pretrained model knows"
    threshold = Threshold(1.0, None, "running standard deviations, or log of the ratio of the standard deviations", "a shift of one, or a factor of e", info=0.5)
    order = 205
    explains = ("GD801", "GD803", "GD608", "GD604")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for operation in recording.operations:
            shift, scale = operation.attributes.get("input_shift"), operation.attributes.get("input_log_scale")
            if operation.op != "batch_norm" or shift is None or scale is None or any(i.synthetic for i in recording.inputs):
                continue
            if _new_in_front(recording, operation):
                yield Unmeasured(operation.module, "the layer in front of the normalisation is new")
                continue
            quiet = recording.kind == "audit" or operation.attributes["statistics_move"]
            yield Measurement(value=max(shift, scale), module=operation.module, op=operation.op, location=location(recording, operation),
                              operations=(operation.index,), cap="info" if quiet else mild(recording),
                              evidence={"shift": shift, "std_factor": math.exp(scale), "statistics_move": operation.attributes["statistics_move"]})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        return (f"what enters the first pretrained normalisation is off by {e['shift']:.2g} of its standard deviations and a factor of {e['std_factor']:.2g} in "
                "spread: prepare the data as those the weights were trained on (weights.transforms() in torchvision)")


def _new_in_front(recording: Recording, norm: Operation) -> bool:
    """A layer with untouched initial weights feeds the normalisation."""
    front = [recording.operations[p] for p in norm.producers]
    weights = [w for o in front if o.category == "layer" and (w := weight(recording, o)) is not None]
    return any(not w.trained and (w.init_span is not None or w.scheme.startswith(DEFAULT)) for w in weights)
