from __future__ import annotations

import math
from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.records.ways import is_output
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import ahead, bias, location, loss_input, phi, start
from gradcheck_doctor.rules.progress import guess_of, mild

CLASSES = ("cross_entropy", "binary_cross_entropy", "binary_cross_entropy_with_logits")
DECIDES = 0.9          # share of the spread of the output that is the biases'
WRONG = 3.0            # times the loss of a constant guess: the frequencies of the classes as a prior give less than one


class BiasInit(Rule):
    """Biases start so large that they, not the input, decide what the units do.

    What it measures: |mean bias| of a hidden layer over what the batch varies in its pre-activations (standard deviation over samples); under a
    bounded activation only where the bias alone reaches its flat part (tanh 3, sigmoid 4.6). Of an output in front of a cross-entropy the spread of the
    biases, where it is nine tenths of that of the output and the first loss is three times that of a constant guess.

    Why it matters: a bias of -10 under ReLU closes every unit; +10 makes the layer linear.

    When it is harmless: the last layer where it holds a prior (logarithm of a share, mean of the target), gates that start a little open or shut, constants such as 0.1.

    Sources: Goodfellow et al., Deep Learning, 8.4; Lin et al. 2017 (arXiv:1708.02002) for the prior of the last layer.
    """

    code = "GD104"
    name = "bias-init"
    summary = "biases so large that they decide what the units do"
    threshold = Threshold(3.0, 3.0, "|mean bias| / std of the pre-activation over samples", "three standard deviations: a ReLU is always on or off")
    order = 295
    explains = ("GD201", "GD301", "GD303", "GD208", "GD608", "GD202", "GD102", "GD211", "GD107", "GD501", "GD604")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        yield from self._heads(recording)
        sick = []
        for operation in recording.operations:
            ratio = self._ratio(recording, operation)
            if ratio is not None and ratio >= 3.0:
                sick.append((operation, ratio))
        if not sick:
            return
        operation, ratio = max(sick, key=lambda pair: pair[1])
        record = bias(recording, operation)
        assert record is not None
        modules = tuple(dict.fromkeys(o.module for o, _ in sick))
        yield Measurement(value=ratio, module=operation.module, modules=modules, op=operation.op,
                          location=record.origin or location(recording, operation), operations=tuple(o.index for o, _ in sick),
                          evidence={"bias_mean": record.mean, "ratio": ratio, "layers": len(modules)}, cap=mild(recording))

    def _heads(self, recording: Recording) -> Iterator[Measurement]:
        """Output layers whose biases, not the input, decide the first answers, and answer wrong with certainty."""
        for loss in recording.losses:
            layer = loss_input(recording, loss)
            record = bias(recording, layer) if layer is not None and layer.category == "layer" else None
            guess = guess_of(loss) if loss.op in CLASSES else None
            if layer is None or record is None or record.trained or not guess or loss.value is None or loss.reduction != "mean":
                continue
            seen = layer.first.forward if layer.first is not None else None
            size = record.std if loss.op == "cross_entropy" else record.rms            # what all classes have in common decides nothing between them
            if seen is None or not seen.finite or size < DECIDES * (seen.std if loss.op == "cross_entropy" else seen.rms) or loss.value < WRONG * guess:
                continue
            yield Measurement(value=size / seen.sample_std if seen.sample_std > 0 else math.inf, module=layer.module, modules=(layer.module,), op=layer.op,
                              location=record.origin or location(recording, layer), operations=(layer.index,), cap=mild(recording),
                              evidence={"bias_std": record.std, "bias_max": record.absmax, "initial_loss": loss.value, "constant_guess": guess, "loss": loss.op})

    def _ratio(self, recording: Recording, operation: Operation) -> float | None:
        record = bias(recording, operation)
        if operation.category != "layer" or record is None or record.trained or abs(record.mean) <= 0.5 or record.std > 0.5 * abs(record.mean):
            return None
        following = ahead(recording, operation)
        if following is None or following.category != "activation" or is_output(recording, operation):
            return None
        theory = phi(following)
        if theory is not None and theory.saturation is not None and abs(record.mean) < theory.saturation:
            return None                                   # a gate that starts a little open or shut
        seen = [f.sample_std for f, _ in start(recording, operation) if f is not None and f.sample_std > 0]
        return abs(record.mean) / seen[0] if seen else math.inf

    def message(self, m: Measurement) -> str:
        if "initial_loss" in m.evidence:
            e = m.evidence
            return (f"the output's biases go up to {e['bias_max']:.3g}, {m.value:.3g} times what the inputs vary in it (limit {{limit}}): they decide the answers, "
                    f"and the first {e['loss']} is {e['initial_loss']:.3g} where a constant guess has {e['constant_guess']:.3g}")
        size = (f"{m.value:.3g} times what the inputs vary in the pre-activations (limit {{limit}})" if math.isfinite(m.value)
                else "and the inputs vary nothing in the pre-activations")
        return (f"biases start at {m.evidence['bias_mean']:.3g}, {size}"
                + (f", in {m.evidence['layers']} layers" if m.evidence["layers"] > 1 else ""))

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if "initial_loss" in m.evidence:
            return (Prescription("initialise", "Start the output's biases at zero (a prior is the logarithm of each class's share)", safety="safe", kind="init",
                                 modules=m.modules, span=m.location, arguments={"scheme": "zero output bias"}),)
        return (Prescription("initialise", "Start the hidden biases at zero", safety="safe", kind="init", modules=m.modules,
                             span=m.location, arguments={"scheme": "zero bias"}),)
