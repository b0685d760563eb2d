from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import gradient_ratio, location, runs
from gradcheck_doctor.rules.progress import mild


class GradientChoke(Rule):
    """One single layer takes nearly all of the gradient away, while its neighbours let it pass.

    What it measures: gradient at a layer's input over that at its output, where both neighbours keep it within a factor of 10.

    Why it matters: everything below that layer learns a hundred times more slowly, and the layer is easy to miss.

    When it is harmless: pooling and global averages (the ratio uses the tensor norm where that is nearer to 1), a run that learns.

    Sources: measured in this project.
    """

    code = "GD304"
    name = "gradient-choke"
    summary = "one layer takes nearly all of the gradient away"
    threshold = Threshold(1e-2, 1e-4, "gradient ratio across one layer", "neighbours of healthy layers stay within a factor of 10", "below")
    order = 615

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
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
        return f"only {m.value:.2g} of the gradient passes this layer (limit {{limit}}), its neighbours let it through"
