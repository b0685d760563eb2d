from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.progress import mild


class NegligibleGradient(Rule):
    """One layer's gradient is negligible beside its weights, compared with the other layers.

    What it measures: median over the observed steps of ||g|| / ||w|| of a weight, over the median of that ratio over all weights.

    Why it matters: under SGD that layer stays where it is.

    When it is harmless: embeddings with rare rows, adaptive optimizers; info only.

    Sources: measured in this project.
    """

    code = "GD307"
    name = "negligible-gradient"
    summary = "one layer's gradient is negligible beside its weights"
    threshold = Threshold(None, None, "||g||/||w|| relative to the median layer", "a thousandth of the median layer", "below", info=1e-3)
    order = 620
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        ratios = {}
        for parameter in recording.parameters:
            rows = [r.grad_norm / r.weight_norm for r in recording.parameter_steps.get(parameter.name, ())
                    if r.grad_norm is not None and r.weight_norm and r.grad_norm > 0]
            if len(parameter.shape) >= 2 and rows and parameter.trainable:
                ratios[parameter.name] = median(rows)
        if len(ratios) < 3:
            return
        usual = median(ratios.values())
        for name, ratio in ratios.items():
            record = recording.parameter[name]
            module = recording.module.get(record.module)
            if module is None or not module.type.startswith("Embedding"):
                yield Measurement(value=ratio / usual, module=record.module, location=module.built if module is not None else None,
                                  cap=mild(recording), evidence={"relative": ratio / usual})

    def message(self, m: Measurement) -> str:
        return f"the gradient of this weight, relative to its size, is {m.value:.2g} of the median layer's"
