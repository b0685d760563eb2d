from __future__ import annotations

import math
from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, ParameterRecord, Recording
from gradcheck_doctor.rules.attention import hard_attention
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import Run, far_end, gradient_ratio, location, phi, runs, signal_ratio, untouched, untrained, weight
from gradcheck_doctor.rules.initialisation.cures import TITLE, initialise, right_scheme
from gradcheck_doctor.rules.progress import mild, went_nowhere

FIXED = ("normal std", "uniform", "truncated normal std", "too small", "constant", "normal std=1")
EFFECT = 30.0         # factor by which signal or gradient must have changed end to end
GROSS = 1.5           # decades of variance above which a far too high first loss is no matter of taste, even where the training loss falls later


class InitScale(Rule):
    """Weights drawn far too large or too small for their fan-in, usually with one fixed standard deviation for all layers, or with a gain of the user's.

    What it measures: variance of the weights (of orthogonal ones, the square of their gain) over what their activation needs, in decades (|log10|), the
    worst of a run of layers; reported only if the signal or the gradient measured along the run left [1/30, 30] or the first loss is far off (three times
    that of a guess, where most of the model is drawn too large and the loss does not fall below the guess's). Also of the
    queries and keys of an attention that chooses one key in each row from the first step on.

    Why it matters: N(0, 1) weights in 500-wide layers start at a loss of 4e4; N(0, 0.01) weights lose the signal within a few layers.

    When it is harmless: embeddings N(0, 1) in front of a LayerNorm, Fourier features, heads started near 0 on purpose, 0.02 in transformers. Where no
    more than half of the hidden layers are far too small (the classifier of a VGG), what such a head adds to the shrinkage is not counted.
    In a run that learns it is info, unless the first loss is a multiple of a guess's.

    Sources: Géron, ch. 11; measured in this project (3 x 500 N(0,1): first loss 4.4e4).
    """

    code = "GD103"
    name = "init-scale"
    summary = "weights far too large or too small for their fan-in"
    threshold = Threshold(1.0, 1.0, "decades of variance from the right one", "ten times the right variance, with a measured effect")
    order = 300
    explains = ("GD301", "GD302", "GD208", "GD209", "GD201", "GD202", "GD102", "GD604", "GD501", "GD701", "GD706", "GD305", "GD803", "GD801",
                "GD802", "GD608", "GD203", "GD211", "GD101", "GD702")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for run in runs(recording):
            if run.recurrent or not any(phi(a) for a in run.activations) or not untrained(recording, run.layers):
                continue
            weights = [w for layer in run.layers if (w := weight(recording, layer)) is not None]
            scheme, act, _ = right_scheme(run.activations)
            hidden = [w for w in weights[:-1] or weights if w.gain and w.count >= 16]
            decades = [math.log10(_gain(w) ** 2 / _target(w, scheme)) for w in hidden]
            if not decades:
                continue
            worst = max(decades, key=abs)
            branch = not all(o.on_spine for o in run.layers)
            if not any(w.scheme.startswith(FIXED) or w.orthogonal for w in hidden) or worst < 0 and branch:
                continue                                    # a quiet branch beside a skip is a design
            last = far_end(recording, run) if 2 * sum(d <= -1.0 for d in decades) <= len(decades) else run.layers[-1]
            yield self._judge(recording, run, last, worst, act, hidden[decades.index(worst)])
        for hard in hard_attention(recording):
            drawn = [(layer, w) for layer in hard.layers if (w := weight(recording, layer)) is not None and w.gain and (w.scheme.startswith(FIXED) or w.orthogonal)]
            large = [(layer, w, over) for layer, w in drawn if (over := math.log10(_gain(w) ** 2 / _target(w, "glorot uniform"))) > 1.0]
            if large:
                worst = max(over for *_, over in large)
                layers = tuple(layer for layer, *_ in large)
                yield Measurement(
                    value=worst, module=layers[0].module, modules=tuple(dict.fromkeys(o.module for o in layers)), op=layers[0].op,
                    location=large[0][1].origin or location(recording, layers[0]), operations=tuple(o.index for o in layers),
                    evidence={"variance_ratio": 10**worst, "scheme": large[0][1].scheme, "activation": "none", "right": TITLE["glorot uniform"],
                              "chosen": hard.chosen, "layers": len(layers)}, cap=mild(recording, "warning" if worst >= GROSS else "info") or "warning")

    def _judge(self, recording: Recording, run: Run, last: Operation, worst: float, act: str, record: ParameterRecord) -> Measurement:
        signal = signal_ratio(recording, run.layers[0], last, untouched)
        gradient = gradient_ratio(recording, run.layers[0], last, untouched)
        drawn = [u for o in run.activations if (u := o.units_first or (o.units if recording.kind == "audit" else None)) is not None]
        saturated = max((max(u.saturated_fraction, u.flat_share) for u in drawn), default=0.0)
        effect = any(r is not None and not 1 / EFFECT <= r <= EFFECT for r in (signal, gradient)) or saturated > 0.5
        loss = next((x for x in recording.losses if x.classes and x.value is not None), None)
        if loss is not None and loss.value is not None and loss.classes and worst > 0:
            effect = effect or loss.value > 10 * math.log(max(loss.classes, 2))
        gross = False
        if loss is not None and loss.value is not None and loss.classes and worst > 0:
            gross = worst >= GROSS and len(run.layers) >= 3 and loss.value > 3 * math.log(max(loss.classes, 2))   # it generalises worse even where it fits
            effect = effect or gross or loss.value > 3 * math.log(max(loss.classes, 2)) and went_nowhere(recording) and _everywhere(recording)
        scheme = right_scheme(run.activations)[0]
        place = record.origin or location(recording, run.layers[0])
        return Measurement(
            value=abs(worst), module=run.layers[0].module, modules=run.modules, op=run.layers[0].op, location=place, operations=run.indices,
            evidence={"variance_ratio": 10**worst, "signal_ratio": signal, "gradient_ratio": gradient, "scheme": record.scheme, "activation": act,
                      "saturated_fraction": saturated, "right": TITLE[scheme], "layers": run.layers.index(last) + 1},
            cap=mild(recording, "warning" if gross else "info") if effect else "info")

    def message(self, m: Measurement) -> str:
        e = m.evidence
        word = "larger" if e["variance_ratio"] > 1 else "smaller"
        factor = e["variance_ratio"] if e["variance_ratio"] > 1 else 1 / e["variance_ratio"]
        if "chosen" in e:
            return (f"weights of queries and keys drawn as {e['scheme']} have a variance {factor:.3g} times larger than {e['right']} gives: each row of the "
                    f"attention chooses one key from the first step on, so that they hardly learn")
        seen = [f"{name} {e[key]:.2g}" for name, key in (("signal", "signal_ratio"), ("gradient", "gradient_ratio")) if e[key] is not None]
        seen += [f"{e['saturated_fraction']:.0%} of the values saturated"] if e["saturated_fraction"] > 0.5 else []
        return (f"weights drawn as {e['scheme']} have a variance {factor:.3g} times {word} than {e['right']} gives for {e['activation']} "
                f"(end to end over {e['layers']} layers: {', '.join(seen)})")

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if "chosen" in m.evidence:
            return initialise(recording, [recording.operation(i) for i in m.operations], ())
        run = next(r for r in runs(recording) if r.indices == m.operations)
        return initialise(recording, run.layers, run.activations)


def _everywhere(recording: Recording) -> bool:
    """More than half of the model's weight matrices start with ten times the variance of Glorot's, or more."""
    held = [w for o in recording.operations if o.category == "layer" and (w := weight(recording, o)) is not None and w.gain and w.count >= 16]
    matrices = {w.name: w for w in held}.values()
    large = [w for w in matrices if not w.trained and _gain(w) ** 2 >= 10 * _target(w, "glorot normal")]
    return 2 * len(large) > len(matrices)


def _gain(record: ParameterRecord) -> float:
    """sqrt(Var(w) fan_in); of an orthogonal weight the gain it was drawn with, whichever of its sides is the longer."""
    if not record.orthogonal:
        return record.gain or 0.0
    rows = record.shape[0]
    return record.std * math.sqrt(max(rows, record.count / rows))


def _target(record: ParameterRecord, scheme: str) -> float:
    """sigma_w^2 = Var(w) fan_in that `scheme` asks for."""
    if scheme == "he normal":
        return 2.0
    fan_in, fan_out = record.fan_in or 1, record.fan_out or 1
    return 1.0 if scheme == "lecun normal" or record.orthogonal else 2.0 * fan_in / (fan_in + fan_out)
