from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.branches import mild_run
from gradcheck_doctor.rules.flow import end, far_end, gradient_ratio, location, norm_kind, runs, start, weight
from gradcheck_doctor.rules.progress import learned, mild

LEAST = 3              # layers


class VanishingGradient(Rule):
    """The gradient shrinks on its way to the first layers, which then hardly learn.

    What it measures: rms and norm of dL/d(output) at the first layer over those at the last layer, the ratio nearer to 1 of the two, along each
    run of layers without normalisation or skip, and along the spine (the values that every path to the loss passes through). Median over the
    first observed steps; a training run must show it at its end, too, or not have learned.

    Why it matters: with a ratio of 1e-3 the first layer moves a thousand times more slowly than the last one under SGD.

    When it is harmless: parallel branches that start quiet by design (zero-gamma, LayerScale); a head that starts small on purpose (not counted);
    under Adam until the gradient nears epsilon; frozen layers; time steps of a recurrence (see temporal-gradient).

    Sources: Géron, ch. 11; Glorot and Bengio 2010. The usual ratio of weight gradients is blind when signal and gradient shrink together.
    """

    code = "GD301"
    name = "vanishing-gradient"
    summary = "the gradient shrinks on its way to the first layers"
    threshold = Threshold(1e-2, 1e-3, "gradient at the first layer / at the last layer", "default-init ReLU: 1.2e-2 at 6 layers, 1.7e-3 at 8 (measured)",
                          "below")
    order = 600
    explains = ("GD307", "GD702")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        seen = False
        for run in runs(recording):
            if run.recurrent or len(run.layers) < LEAST:
                continue
            seen = True
            reached = run.layers[: run.layers.index(far_end(recording, run)) + 1]
            yield from self._pair(recording, list(reached), run.indices, "run", mild_run(recording, run))
        spine = [o for o in recording.spine if _carries(recording, o)]
        weights = [o.parameters for o in spine if o.parameters]
        if len(set(weights)) < len(weights):
            yield Unmeasured("", "the same weights are applied again and again: depth is time here, see temporal-gradient")
        elif not seen and len(spine) >= LEAST:
            yield from self._pair(recording, spine, tuple(o.index for o in spine), "spine", mild(recording))

    def _pair(self, recording: Recording, chain: list[Operation], indices: tuple[int, ...], kind: str, cap: str | None) -> Iterator[Measurement | Unmeasured]:
        low, high = chain[0], chain[-1]
        ratio = gradient_ratio(recording, low, high)
        if ratio is None:
            yield Unmeasured(low.module, "no gradient was seen at both ends")
            return
        late = gradient_ratio(recording, low, high, end)
        if kind == "spine" and ratio > 1e-5:
            cap = "info"
        if not learned(recording) and recording.kind == "run" and late is not None and late > 0.05:
            cap = "info"
        yield Measurement(value=ratio, module=low.module, modules=tuple(dict.fromkeys(o.module for o in chain)), op=low.op,
                          location=location(recording, low), operations=indices, cap=cap,
                          evidence={"gradient_ratio": ratio, "gradient_ratio_end": late, "layers": len(chain), "along": kind})

    def message(self, m: Measurement) -> str:
        return f"the gradient at the first of {m.evidence['layers']} layers is {m.value:.2g} of that at the last (limit {{limit}})"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("insert-norm", "Normalise between the layers", kind="norm", modules=m.modules, arguments={"norm": norm_kind(recording)}),)


def _carries(recording: Recording, operation: Operation) -> bool:
    """A step of the spine that is part of the network: no product with a constant (targets, a loss's weights), no layer that starts at zero on purpose."""
    if operation.category == "merge":
        return len(operation.producers) > 1
    record = weight(recording, operation)
    return operation.category in ("layer", "norm", "recurrent", "attention") and not (record is not None and record.scheme == "zeros")


class ExplodingGradient(Rule):
    """The gradient grows on its way to the first layers, or its norm runs far away from where it started.

    What it measures: gradient at the first layer over that at the last layer along each run of layers without normalisation or skip.

    Why it matters: one step with such a gradient throws the first layers away.

    When it is harmless: deep SELU nets at the start (42 measured), ResNet-50 at the start (36); warm-up; a run that learns.

    Sources: Géron, ch. 11; Pascanu et al. 2013 (arXiv:1211.5063).
    """

    code = "GD302"
    name = "exploding-gradient"
    summary = "the gradient grows on its way to the first layers"
    threshold = Threshold(1e2, 1e3, "gradient at the first layer / at the last layer", "ResNet-50 at init 36, deep SELU 42 (measured)")
    order = 605
    explains = ("GD305", "GD706")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for run in runs(recording):
            if run.recurrent:
                continue
            when = (start, end) if recording.kind == "run" and not learned(recording) else (start,)
            ratios = [r for w in when if (r := gradient_ratio(recording, run.layers[0], run.layers[-1], w)) is not None]
            if ratios:
                low = run.layers[0]
                yield Measurement(value=max(ratios), module=low.module, modules=run.modules, op=low.op, location=location(recording, low),
                                  operations=run.indices, cap=mild_run(recording, run), evidence={"gradient_ratio": max(ratios), "layers": len(run.layers)})

    def message(self, m: Measurement) -> str:
        return f"the gradient at the first of {m.evidence['layers']} layers is {m.value:.2g} times that at the last (limit {{limit}})"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("clip-by-norm", "Clip the gradient by norm, 1.0", kind="clip", arguments={"max_norm": 1.0}),
                Prescription("insert-norm", "Normalise between the layers", kind="norm", modules=m.modules, arguments={"norm": norm_kind(recording)}))
