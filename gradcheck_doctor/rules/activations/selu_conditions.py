from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.records.ways import is_output
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import ahead, back, location, start, weight
from gradcheck_doctor.rules.progress import mild

LOW, HIGH = 0.7, 1.4   # standard deviations that self-normalising networks keep to


class SeluConditions(Rule):
    """SELU is used where its self-normalising property does not hold.

    What it measures: whether the standard deviation of the deepest SELU's outputs left [0.7, 1.4], and which condition is broken: LeCun normal weights,
    plain sequence (no skip that a layer follows), AlphaDropout instead of Dropout, no other norm. Dropout is told of within these limits, too.

    Why it matters: only under these conditions does depth bring activations back to mean 0 and standard deviation 1; without them SELU is just
    another ELU and a deep stack fades or grows.

    When it is harmless: shallow nets. Broken conditions without a measured drift are info: SELU with plain Dropout trained to 0.94 where
    AlphaDropout at the same rate reached 0.35 (measured).

    Sources: Klambauer et al. 2017 (arXiv:1706.02515); Géron, ch. 11.
    """

    code = "GD211"
    name = "selu-conditions"
    summary = "SELU where it cannot self-normalise"
    threshold = Threshold(2.0, 10.0, "factor by which the deepest SELU outputs miss standard deviation 1", "1000 layers with LeCun normal stay within "
                          "0.83 to 1.00 (measured)", info=1.0)
    order = 320
    explains = ("GD208", "GD209", "GD301", "GD302")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        layers = [o for o in recording.operations if o.op == "selu" and o.category == "activation"]
        if not layers:
            return
        broken = _broken(recording, layers)
        deep = layers[-1]
        spread = [f.std for f, _ in start(recording, deep) if f is not None and f.finite]
        if not spread or not broken or LOW <= spread[0] <= HIGH and not any("Dropout" in b for b in broken):
            return
        factor = max(spread[0], 1.0 / max(spread[0], 1e-30))
        bad = len(layers) >= 4 and "weights are not LeCun normal" in broken
        yield Measurement(value=max(factor, 1.0), module=deep.module, modules=tuple(dict.fromkeys(o.module for o in layers)), op="selu",
                          location=location(recording, deep), operations=tuple(o.index for o in layers),
                          cap=mild(recording) if bad else "info", evidence={"std": spread[0], "broken": broken, "layers": len(layers)})

    def message(self, m: Measurement) -> str:
        return f"SELU after {m.evidence['layers']} layers has standard deviation {m.evidence['std']:.3g} instead of 1: {'; '.join(m.evidence['broken'])}"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        feeders = [f for i in m.operations if (f := back(recording, recording.operations[i])) is not None and f.category == "layer"]
        cures = []
        if any("LeCun" in b for b in m.evidence["broken"]) and feeders:
            cures.append(Prescription("initialise", "LeCun normal weights for SELU", safety="safe", kind="init",
                                      modules=tuple(dict.fromkeys(f.module for f in feeders)), arguments={"scheme": "lecun normal", "zero_bias": True}))
        if any("Dropout" in b for b in m.evidence["broken"]):
            cures.append(Prescription("alpha-dropout", "AlphaDropout in place of Dropout", kind="other", modules=m.modules))
        return tuple(cures)


def _broken(recording: Recording, layers: list[Operation]) -> list[str]:
    """The conditions of self-normalisation that do not hold."""
    found = []
    feeders = [f for o in layers if (f := back(recording, o)) is not None]
    gains = [w.gain for f in feeders if f.category == "layer" and (w := weight(recording, f)) is not None and w.gain is not None and not w.trained]
    if any(not 0.8 <= g * g <= 1.25 for g in gains):
        found.append("weights are not LeCun normal")
    following = [a for o in layers if (a := ahead(recording, o, ("shape",))) is not None]
    if any(a.op == "dropout" and a.attributes.get("p", 0.5) for a in following):
        found.append("Dropout instead of AlphaDropout follows")
    if any(f.category == "norm" for f in feeders) or any(a.category == "norm" for a in following):
        found.append("a normalisation layer stands beside it")
    if any(o.attributes.get("residual") and not is_output(recording, o) for o in recording.operations):
        found.append("the network has skips")
    return found
