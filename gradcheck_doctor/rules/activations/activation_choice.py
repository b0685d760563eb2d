from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import Run, gradient_ratio, is_gate, location, norm_kind, phi, runs
from gradcheck_doctor.rules.progress import mild

LEAST = {"sigmoid": 2, "hardsigmoid": 2, "tanh": 8, "hardtanh": 8, "softsign": 8}
DEEP = 12              # layers, from which ReLU's signal varies from draw to draw (Hanin 2018): self-normalisation, or normalisation, holds it


class ActivationChoice(Rule):
    """A plain stack of saturating activations lets the gradient die, whatever the initialisation.

    What it measures: gradient at the first layer's output over that at the last layer's, along a run of at least two sigmoid or eight tanh
    layers with no normalisation and no skip.

    Why it matters: the slope of sigmoid is at most 1/4, so no weight variance keeps the gradient level (measured with Glorot: 0.19 at two
    layers, 0.011 at four, 6e-4 at six). SELU, then ELU, leaky ReLU, ReLU, tanh, logistic is Géron's order for plain stacks; the advice here
    is ReLU with He; from twelve layers on SELU where the stack is plain and dense, normalisation where it is not.

    When it is harmless: convolutions are left to missing-normalization, whose cure they need; gates,
    attention, squeeze and excitation, networks that need smoothness (PINNs), heads, a run that learns.

    Sources: Géron, ch. 11; Glorot and Bengio 2010; measured in this project.
    """

    code = "GD203"
    name = "activation-choice"
    summary = "a plain stack of saturating activations in which the gradient dies"
    threshold = Threshold(5e-2, 1e-3, "gradient ratio first to last layer", "sigmoid with Glorot: 0.045 at three layers, 0.011 at four (measured)", "below")
    order = 420
    explains = ("GD301", "GD208", "GD501", "GD307", "GD102", "GD702", "GD608", "GD707", "GD303")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for run in runs(recording):
            hidden = [a for a in run.before if a is not None and (t := phi(a)) is not None and t.saturating and not is_gate(recording, a)]
            kinds = {a.op for a in hidden}
            if run.recurrent or not hidden or len(hidden) < max(LEAST.get(k, 99) for k in kinds):
                continue
            ratio = gradient_ratio(recording, run.layers[0], run.layers[-1])
            if ratio is None:
                continue
            yield self._judge(recording, run, hidden, ratio)

    def _judge(self, recording: Recording, run: Run, hidden: list[Operation], ratio: float) -> Measurement:
        return Measurement(value=ratio, module=hidden[0].module,
                           modules=tuple(dict.fromkeys(a.module for a in hidden)), op=hidden[0].op,
                           location=location(recording, hidden[0]), operations=tuple(a.index for a in hidden) + run.indices,
                           cap="info" if any(o.op.startswith("conv") for o in run.layers) else mild(recording),
                           evidence={"gradient_ratio": ratio, "layers": len(hidden), "activation": hidden[0].op})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        return (f"the gradient falls to {m.value:.2g} (limit {{limit}}) along {e['layers']} {e['activation']} layers with no normalisation and "
                "no skip; ReLU with He, or SELU with LeCun normal in a plain dense stack, keeps it level")

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        act, convolutional = m.evidence["activation"], any(o.op.startswith("conv") for o in recording.operations)
        why = "the gradient of ReLU does not shrink, and convolutions rule out SELU's self-normalisation" if convolutional else \
            "ReLU's slope is 1 where it is active, so He init keeps gradients level"
        relu = Prescription("replace-activation", f"Replace {act} by ReLU with He init: {why}", kind="activation",
                            modules=m.modules, span=m.location, arguments={"to": "relu", "scheme": "he normal"})
        selu = Prescription("replace-activation", f"Replace {act} by SELU with LeCun normal init: a plain stack of dense layers then normalises itself",
                            kind="activation", modules=m.modules, span=m.location, arguments={"to": "selu", "scheme": "lecun normal"})
        norm = Prescription("insert-norm", "Normalise in front of each activation", kind="norm", modules=m.modules, arguments={"norm": norm_kind(recording)})
        if m.evidence["layers"] < DEEP:
            return relu, norm
        return (selu, relu, norm) if _plain_and_dense(recording, max(m.operations)) else (norm, relu)


def _plain_and_dense(recording: Recording, until: int) -> bool:
    """Up to the end of the run there are linear layers in a row and nothing else that computes: what SELU needs to normalise itself."""
    return not any(o.category in ("norm", "attention", "recurrent", "embedding", "merge", "dropout") or o.category == "layer" and o.op != "linear"
                   for o in recording.operations[:until + 1])
