from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, ParameterRecord, Recording
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.branches import mild_run
from gradcheck_doctor.rules.flow import Run, far_end, gradient_ratio, location, norm_kind, phi, runs, signal_ratio, start, typical, untouched, untrained, weight
from gradcheck_doctor.rules.initialisation.cures import TITLE, fitting, initialise, right_scheme
from gradcheck_doctor.theory.propagation import expected_attenuation

CONFIRMED = 0.4       # share of the predicted decades that must be seen in the measured signal or gradient

ENOUGH = 1.5          # decades that confirm by themselves: bounded activations never show the whole prediction


class InitActivationMismatch(Rule):
    """The weights' spread does not fit the activation, and the error multiplies over the depth of a run of layers.

    What it measures: for each run of layers with no normalisation and no skip, the product of the factors by which each layer changes the
    signal, sigma_w sqrt(E[phi^2]), and the gradient, sigma_w sqrt(E[phi'^2]), from the weights as they are; the worse of the two in decades
    (|log10|). It is confirmed by the signal and the gradient actually measured along the run before it is more than info.

    Why it matters: PyTorch's default init has sigma_w^2 = 1/3 where ReLU needs 2: a factor of 0.41 a layer. That is harmless at two layers,
    1e-2 at six and 1e-8 at twenty. He keeps ReLU nets level, LeCun normal SELU nets, Glorot tanh and sigmoid nets.

    When it is harmless: in shallow nets, under normalisation, with skips, and in runs of training that learn all the same: then it is info. An output
    layer that was started near 0 on purpose is not counted.

    Sources: Glorot and Bengio 2010; He et al. 2015 (arXiv:1502.01852); Klambauer et al. 2017 (arXiv:1706.02515); Géron, ch. 11.
    """

    code = "GD102"
    name = "init-activation-mismatch"
    summary = "weight spread does not fit the activation over the depth of a run of layers"
    threshold = Threshold(2.0, 3.0, "decades of signal or gradient over the run", "default ReLU init: 1e-2 at 5.1 layers, 1e-3 at 7.7 (measured)",
                          info=0.3)
    order = 310
    explains = ("GD301", "GD302", "GD208", "GD209", "GD201", "GD202", "GD501", "GD211", "GD107", "GD604", "GD608", "GD203", "GD702")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for run in runs(recording):
            if run.recurrent or not any(phi(a) for a in run.activations):
                continue
            if not untrained(recording, run.layers):
                yield Unmeasured(run.layers[0].module, "weights are trained or loaded")
                continue
            yield self._judge(recording, run)

    def _judge(self, recording: Recording, run: Run) -> Measurement:
        weights = [weight(recording, layer) for layer in run.layers]
        last = far_end(recording, run)
        judged = weights[:run.layers.index(last) + 1]
        pairs = [(w.gain or 0.0, phi(act) if act is not None else None) for w, act in zip(judged, run.before, strict=False) if w is not None]
        forward, backward = expected_attenuation(pairs[1:])
        decades = [math.log10(max(a, 1e-30)) for a in (forward, backward)]
        worst = max(decades, key=abs)
        signal = signal_ratio(recording, run.layers[0], last, untouched)
        gradient = gradient_ratio(recording, run.layers[0], last, untouched)
        seen = [math.log10(max(r, 1e-30)) for r in (signal, gradient) if r is not None]
        confirmed = any(s * worst > 0 and abs(s) >= min(max(1.0, CONFIRMED * abs(worst)), ENOUGH) for s in seen)
        scheme, act, _ = right_scheme(run.activations)
        fits = all(fitting(w, scheme) for w in weights[1:-1] if w is not None)
        selu = act == "selu" and abs(worst) >= 1.0
        confirmed = confirmed or selu and _drifted(recording, run)
        cap = "info" if fits or not confirmed or (act == "sigmoid" and worst < 0) else mild_run(recording, run)
        shown = typical(recording, run.layers)
        evidence = {"expected_forward": forward, "expected_backward": backward, "signal_ratio": signal, "gradient_ratio": gradient,
                    "layers": len(judged), "activation": act, "scheme": _schemes(judged), "right": TITLE[scheme], "decades": worst}
        return Measurement(value=0.0 if fits else max(abs(worst), 2.0) if selu and confirmed else abs(worst),
                           module=shown.module, modules=run.modules, op=shown.op, location=_origin(recording, shown) or location(recording, shown),
                           operations=run.indices, evidence=evidence, cap=cap)

    def message(self, m: Measurement) -> str:
        e = m.evidence
        measured = [f"{word} {e[key]:.2g}" for word, key in (("signal", "signal_ratio"), ("gradient", "gradient_ratio")) if e[key] is not None]
        right = "no init keeps a sigmoid stack level" if e["activation"] == "sigmoid" else f"{e['right']} keeps both near 1"
        return (f"{e['layers']} layers with {e['scheme']} weights and {e['activation']} multiply the signal by {e['expected_forward']:.2g} and the "
                f"gradient by {e['expected_backward']:.2g} end to end in theory (measured: {', '.join(measured) or 'nothing'}); {right}")

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        run = next(r for r in runs(recording) if r.indices == m.operations)
        layers = [o for o in run.layers if o is not run.layers[-1]] or list(run.layers)
        return (*initialise(recording, layers, run.activations), Prescription(
            "insert-norm", "Normalise between the layers", kind="norm", modules=m.modules, arguments={"norm": norm_kind(recording)}))


def _schemes(weights: Sequence[ParameterRecord | None]) -> str:
    """How the weights were drawn; where in several ways, each with its number of layers, the commonest first."""
    names = Counter(w.scheme.removesuffix(" (fan_out)") for w in weights if w is not None).most_common()
    return names[0][0] if len(names) == 1 else ", ".join(f"{name} ({count})" for name, count in names)


def _origin(recording: Recording, layer: Operation) -> Span | None:
    """The user's expression that drew the layer's weight."""
    record = weight(recording, layer)
    return record.origin if record is not None else None


def _drifted(recording: Recording, run: Run) -> bool:
    """The deepest of at least four SELU layers is a factor of 2 away from standard deviation 1, which it should hold."""
    outputs = [a for a in run.activations if a.op == "selu"]
    seen = [f.std for f, _ in start(recording, outputs[-1]) if f is not None and f.finite] if len(outputs) >= 4 else []
    return bool(seen) and not 0.5 <= seen[0] <= 2.0
