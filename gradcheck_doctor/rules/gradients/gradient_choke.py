from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import ahead, back, gradient_ratio, location, runs, start
from gradcheck_doctor.rules.progress import mild, went_nowhere

FACTORS = ("arg1", "other", "divisor")
CAUSE = 320            # in causal order: an initialisation cannot make it good
FAINT = 1e-2           # rms of what a layer is given, below which its bias is all that it gives on


class GradientChoke(Rule):
    """One single place takes nearly all of the gradient away, while its neighbours let it pass.

    What it measures: gradient at a layer's input over that at its output, where both neighbours keep it within a factor of 10. Also a division (or
    product) by a constant in front of a layer, over the number of values that were summed before it, where the layer is given next to nothing (rms below
    0.01) and the loss of the run went nowhere: a sum of 20 divided by 2000 is no mean.

    Why it matters: everything below that layer learns a hundred times more slowly, and the layer is easy to miss.

    When it is harmless: pooling and global averages (the ratio uses the tensor norm where that is nearer to 1), scaled branches and outputs, a
    normalisation behind the division, a run that learns.

    Sources: measured in this project.
    """

    code = "GD304"
    name = "gradient-choke"
    summary = "one layer takes nearly all of the gradient away"
    threshold = Threshold(1e-2, 1e-4, "gradient ratio across one layer", "neighbours of healthy layers stay within a factor of 10", "below")
    order = 615
    explains = ("GD201", "GD301", "GD208", "GD608", "GD702", "GD307", "GD701")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        if went_nowhere(recording):
            yield from _scalings(recording)
        for run in runs(recording):
            if run.recurrent or len(run.layers) < 4:
                continue
            ratios = [gradient_ratio(recording, a, b) for a, b in zip(run.layers, run.layers[1:], strict=False)]
            for i, ratio in enumerate(ratios):
                around = [r for j, r in enumerate(ratios) if abs(j - i) == 1 and r is not None]
                if ratio is not None and around and all(0.1 <= r <= 10 for r in around):
                    layer = run.layers[i + 1]
                    yield Measurement(value=ratio, module=layer.module, op=layer.op, location=location(recording, layer), operations=(layer.index,),
                                      cap=mild(recording), evidence={"gradient_ratio": ratio})

    def message(self, m: Measurement) -> str:
        if "factor" in m.evidence:
            summed, factor = m.evidence["summed"], m.evidence["factor"]
            what = f"a sum of {summed} values" if summed > 1 else "the signal"
            return (f"{what} is {f'divided by {factor:g}' if m.op == 'div' else f'multiplied by {factor:g}'}: the layer behind is given an rms of "
                    f"{m.evidence['rms']:.2g}, and only {m.value:.2g} of the gradient passes (limit {{limit}})")
        return f"only {m.value:.2g} of the gradient passes this layer (limit {{limit}}), its neighbours let it through"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if m.evidence.get("summed") != 1:
            return ()
        return (Prescription("drop-factor", f"Leave out the factor {m.evidence['factor']:g}", kind="other", span=m.location, modules=(m.module,),
                             arguments={"factor": m.evidence["factor"]}),)


def _scalings(recording: Recording) -> Iterator[Measurement]:
    """Products with a constant, between what makes the signal and the next layer, that leave hardly anything of it."""
    for operation in recording.operations:
        factor = next((float(operation.attributes[k]) for k in FACTORS if isinstance(operation.attributes.get(k), (int, float))), 0.0)
        if operation.op not in ("mul", "div") or operation.category != "scale" or operation.parameters or not operation.on_spine or not factor:
            continue
        maker, summed = _made_of(recording, operation)
        layer = ahead(recording, operation, ("shape", "dropout"))
        if maker is None or maker.category == "other" or layer is None or layer.category != "layer":
            continue
        seen = [f.rms for f, _ in start(recording, operation) if f is not None and f.finite]
        passed = summed * (abs(factor) if operation.op == "mul" else 1.0 / abs(factor))
        if seen and median(seen) < FAINT:
            yield Measurement(value=passed, module=operation.module, op=operation.op, location=location(recording, operation), operations=(operation.index,),
                              order=CAUSE, cap="warning", evidence={"factor": factor, "summed": summed, "rms": median(seen)})


def _made_of(recording: Recording, operation: Operation) -> tuple[Operation | None, int]:
    """What makes the value that is scaled, and how many values were added up for each of its elements."""
    maker, summed = back(recording, operation, ("shape", "dropout")), 1
    if maker is not None and maker.op == "sum" and maker.shape and maker.input_shapes:
        summed = max(1, math.prod(maker.input_shapes[0]) // max(1, math.prod(maker.shape)))
        maker = back(recording, maker, ("shape", "dropout"))
    return maker, summed
