"""The forward counterpart of vanishing and exploding: what the batch varies in the first and in the last layer."""
from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.branches import mild_run
from gradcheck_doctor.rules.flow import far_end, location, near_band, norm_kind, runs, signal_ratio, start, weight
from gradcheck_doctor.rules.progress import constant_guess, mild

GROWN = 1e2            # of the signal, from which on a run of layers is reported
FAR = 10.0             # times a constant guess's loss
ROOT = 340             # in causal order: before the first loss that it makes


def _ratios(recording: Recording) -> Iterator[Measurement]:
    for run in runs(recording):
        if run.recurrent or len(run.layers) < 3:
            continue
        high = far_end(recording, run)
        ratio = signal_ratio(recording, run.layers[0], high)
        if ratio is not None:
            yield Measurement(value=ratio, module=high.module, modules=run.modules, op=high.op, location=location(recording, high),
                              operations=run.indices, cap=mild_run(recording, run), close=near_band(ratio),
                              evidence={"signal_ratio": ratio, "layers": run.layers.index(high) + 1})


class SignalCollapse(Rule):
    """Different inputs give nearly the same activations further up: the signal is lost on the way forward.

    What it measures: standard deviation over the samples of the batch at the last layer's output over that at the first layer's, along a run
    of layers without normalisation or skip.

    Why it matters: the layers above see a constant (their own biases) and can only learn the mean of the targets.

    When it is harmless: outputs of branches that start at zero by design; a run that learns.

    Sources: Glorot and Bengio 2010; 34 x 128 ReLU with Glorot gives 7e-6 (measured).
    """

    code = "GD208"
    name = "signal-collapse"
    summary = "different inputs give the same activations further up"
    threshold = Threshold(1e-2, 1e-3, "signal at the last layer / at the first layer", "34 x 128 Glorot ReLU: 7e-6 (measured)", "below")
    order = 610
    explains = ("GD608", "GD307")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        yield from _ratios(recording)

    def message(self, m: Measurement) -> str:
        return f"over {m.evidence['layers']} layers what the batch varies shrinks to {m.value:.2g} of its size (limit {{limit}})"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("insert-norm", "Normalise between the layers", kind="norm", modules=m.modules, arguments={"norm": norm_kind(recording)}),)


class SignalExplosion(Rule):
    """Activations grow from layer to layer, or from block to block of an unnormalised residual stream.

    What it measures: what the batch varies at the last layer's output over the first layer's, along a run of layers; and along the residual
    stream of blocks with no normalisation. Where neither grows and the first loss is ten times a guess's, also from the first activation that all of the
    signal passes to the last one (message passing over an adjacency matrix that is not normalised).

    Why it matters: the output and the loss start orders of magnitude too large, and so do the gradients.

    When it is harmless: factors below 100; a run that learns.

    Sources: He et al. 2015; Zhang et al. 2019 (Fixup, arXiv:1901.09321) for unnormalised residual streams.
    """

    code = "GD209"
    name = "signal-explosion"
    summary = "activations grow from layer to layer"
    threshold = Threshold(1e2, 1e3, "signal at the last layer / at the first layer", "the mirror image of signal-collapse")
    order = 460
    explains = ("GD302", "GD604", "GD701", "GD706", "GD305", "GD801", "GD802", "GD803", "GD707")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        measured = list(_ratios(recording))
        yield from measured
        if not any(m.value >= GROWN for m in measured):
            yield from self._along_the_spine(recording)
        stream = [o for o in recording.operations if o.attributes.get("residual") and o.on_spine]
        if len(stream) >= 3 and not any(o.category == "norm" for o in recording.operations):
            low, high = stream[0], stream[-1]
            seen = [(a.rms, b.rms) for (a, _), (b, _) in zip(start(recording, low), start(recording, high), strict=False)
                    if a is not None and b is not None and a.rms > 0]
            if seen:
                ratio = seen[0][1] / seen[0][0]
                yield Measurement(value=ratio, module=high.module, modules=tuple(o.module for o in stream), op=high.op,
                                  location=location(recording, high), operations=tuple(o.index for o in stream), cap=mild(recording),
                                  evidence={"signal_ratio": ratio, "layers": len(stream), "stream": True})

    def _along_the_spine(self, recording: Recording) -> Iterator[Measurement]:
        """Layers whose sums and products no run of layers goes through (message passing, gates), where the first loss is that of numbers far too large."""
        steps = [o for o in recording.operations if o.category == "activation" and o.on_spine and o.requires_grad]
        guess = constant_guess(recording)
        if len(steps) < 3 or guess is None or not recording.curve[0][1] > FAR * guess > 0 or any(o.category in ("norm", "recurrent") for o in recording.operations):
            return
        low, high = steps[0], steps[-1]
        seen = [(a.rms, b.rms) for (a, _), (b, _) in zip(start(recording, low), start(recording, high), strict=False)
                if a is not None and b is not None and a.rms > 0]
        layers = [o for o in recording.operations if o.category == "layer" and weight(recording, o) is not None and o.index < high.index]
        if seen and layers:
            yield Measurement(value=seen[0][1] / seen[0][0], module=high.module, modules=tuple(dict.fromkeys(o.module for o in layers)), op=high.op, order=ROOT,
                              location=location(recording, high), operations=tuple(o.index for o in steps), cap=mild(recording),
                              evidence={"signal_ratio": seen[0][1] / seen[0][0], "layers": len(steps)})

    def message(self, m: Measurement) -> str:
        what = "residual blocks without normalisation" if m.evidence.get("stream") else "layers"
        return f"over {m.evidence['layers']} {what} the signal grows {m.value:.3g} times (limit {{limit}})"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if m.evidence.get("stream"):
            return (Prescription("normalise-branches", "Normalise the input of each branch (pre-norm)", kind="norm", modules=m.modules),)
        return (Prescription("insert-norm", "Normalise between the layers", kind="norm", modules=m.modules, arguments={"norm": norm_kind(recording)}),)
