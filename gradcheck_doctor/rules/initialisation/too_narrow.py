from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import Run, gradient_ratio, in_band, location, runs, signal_ratio, typical, untrained, weight
from gradcheck_doctor.rules.initialisation.cures import fitting, right_scheme
from gradcheck_doctor.rules.progress import mild
from gradcheck_doctor.theory.propagation import hanin_beta


class TooNarrow(Rule):
    """A plain ReLU run is so deep for its width that whether it trains is a matter of luck.

    What it measures: beta, the sum of 1 / width over the hidden layers of a run of ReLU layers with no normalisation and no skip.

    Where it is the cause (the weights fit the activation, yet signal or gradient left [1e-2, 1e2] and the run did not learn), dead units are its symptoms.

    Why it matters: the logarithm of the gradient varies from draw to draw with a variance proportional to beta; 16 layers of 5 units
    (beta 3.2) are born dead in 10 of 60 draws.

    When it is harmless: with skips or normalisation, and when the run learns.

    Sources: Hanin 2018 (arXiv:1801.03744); Lu et al. 2019 (arXiv:1903.06733); the draws were measured in this project.
    """

    code = "GD107"
    name = "too-narrow"
    summary = "a plain ReLU net so deep for its width that training is a matter of luck"
    threshold = Threshold(1.0, None, "sum of 1/width", "Hanin 2018; 16 x 5 (3.2) is born dead in 10 of 60 draws")
    order = 330
    weak = True
    explains = ("GD201", "GD301", "GD303", "GD304", "GD307", "GD208", "GD501", "GD608", "GD702", "GD707")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for run in runs(recording):
            if run.recurrent or not any(a.op in ("relu", "relu6") for a in run.activations):
                continue
            widths = [w.shape[0] for layer in run.layers[:-1] if (w := weight(recording, layer)) is not None]
            shown = typical(recording, run.layers)
            yield Measurement(value=hanin_beta(widths), module=shown.module, modules=run.modules, op=shown.op, location=location(recording, shown),
                              operations=run.indices, evidence={"layers": len(widths), "width": min(widths)}, cap=mild(recording),
                              order=self.order if _is_cause(recording, run) else None)

    def message(self, m: Measurement) -> str:
        return (f"{m.evidence['layers']} ReLU layers as narrow as {m.evidence['width']} units: sum of 1/width is {m.value:.2g} (limit {{limit}}), "
                "so signal and gradient vary by orders of magnitude from draw to draw; widen, shorten or add skips")


def _is_cause(recording: Recording, run: Run) -> bool:
    """The weights are drawn as they should be, and still the first steps show a signal or a gradient that is lost along the run."""
    scheme = right_scheme(run.activations)[0]
    ratios = [measure(recording, run.layers[0], run.layers[-1]) for measure in (signal_ratio, gradient_ratio)]
    weights = [w for layer in run.layers[1:-1] if (w := weight(recording, layer)) is not None]
    return untrained(recording, run.layers) and all(fitting(w, scheme) for w in weights) and any(r is not None and not in_band(r) for r in ratios)
