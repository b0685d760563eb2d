from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import TRANSPARENT, back, location
from gradcheck_doctor.rules.progress import adversarial, learned, progress

STRONG = 0.7           # p above which a layer alone can keep a run from learning
KEPT = 1e-3            # of a signal that passes all dropouts in a row: ten of them with p = 0.5
PORTED = 0.8           # p from which it most likely is the probability to keep, which TensorFlow 1 asked for
STANDSTILL = 0.1       # share of the first loss; less is no learning at all
PASSED = (TRANSPARENT | {"activation", "layer", "pool", "norm"}) - {"dropout"}


class DropoutStrength(Rule):
    """Dropout removes more than half of a layer, or one after another nearly all of the signal.

    What it measures: the probability p of each dropout in training mode. In a run that did not learn, with nothing else to explain it: p above 0.7,
    or dropouts in a row, without a skip, that together keep less than a thousandth.

    Why it matters: strong dropout slows training and can underfit. A p of 0.95 is mostly a probability to keep, carried over from TensorFlow 1.

    When it is harmless: 0.5 in the wide dense layers of AlexNet and VGG is normal; in a run that learns it is info.

    Sources: Srivastava et al. 2014; UMLAUT (Schoop et al. 2021).
    """

    code = "GD508"
    name = "dropout-strength"
    summary = "dropout of more than half, or of nearly everything in a row"
    threshold = Threshold(None, None, "p", "UMLAUT", info=0.51)
    order = 530
    weak = True

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        rates = {o.index: p for o in recording.operations if o.category == "dropout" and o.attributes.get("training", True)
                 and isinstance(p := o.attributes.get("p", o.attributes.get("dropout_p", 0.0)), float)}
        kept = _kept(recording, rates)
        sick = [recording.operations[i] for i, p in rates.items() if p > STRONG] or _longest(recording, rates, kept)
        gone = progress(recording)
        if recording.kind == "run" and sick and gone is not None and not learned(recording) and not adversarial(recording):
            yield self._together(recording, sick, [rates[o.index] for o in sick], min(kept[o.index] for o in sick), gone)
            return
        for index, p in rates.items():
            operation = recording.operations[index]
            yield Measurement(value=p, module=operation.module, op=operation.op, location=location(recording, operation), operations=(index,), evidence={"p": p})

    def _together(self, recording: Recording, sick: list[Operation], rates: list[float], kept: float, gone: float) -> Measurement:
        return Measurement(value=max(rates), module=sick[0].module, modules=tuple(dict.fromkeys(o.module for o in sick)), op=sick[0].op,
                           location=location(recording, sick[0]), operations=tuple(o.index for o in sick), floor="error" if gone < STANDSTILL else "warning",
                           evidence={"p": max(rates), "dropouts": len(sick), "kept": kept, "loss_gone": gone})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        if "kept" not in e:
            return f"dropout with p={m.value:g} removes more than half of the layer"
        row = f" ({e['kept']:.2g} where they follow each other)" if e["kept"] < 0.99 * (1.0 - e["p"]) else ""
        many = f"{e['dropouts']} dropouts with p up to {e['p']:g} keep" if e["dropouts"] > 1 else f"dropout with p={e['p']:g} keeps"
        return f"{many} {1.0 - e['p']:.2g} of the signal{row}, and the loss fell by only {max(e['loss_gone'], 0.0):.0%}"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if "kept" not in m.evidence:
            return ()
        p = m.evidence["p"]
        rates = [round(1.0 - p, 4), 0.1] if p >= PORTED else [0.1, 0.0] if m.evidence["dropouts"] > 1 else [0.2]
        return tuple(Prescription("dropout-rate", f"Dropout with p = {rate:g} instead of {p:g}" + (": p is the probability to drop" if p >= PORTED else ""),
                                  modules=m.modules, span=m.location, arguments={"p": rate, "old": p}) for rate in rates)


def _kept(recording: Recording, rates: dict[int, float]) -> dict[int, float]:
    """What is left of the signal behind each dropout, since the last place where two signals met."""
    kept: dict[int, float] = {}
    for index, p in rates.items():
        before = back(recording, recording.operations[index], PASSED)
        kept[index] = (1.0 - p) * (kept.get(before.index, 1.0) if before is not None else 1.0)
    return kept


def _longest(recording: Recording, rates: dict[int, float], kept: dict[int, float]) -> list[Operation]:
    """The dropouts in a row that keep least, where they keep hardly anything."""
    end = min(kept, key=lambda i: kept[i], default=None)
    if end is None or kept[end] >= KEPT:
        return []
    found, current = [recording.operations[end]], back(recording, recording.operations[end], PASSED)
    while current is not None and current.index in rates:
        found.append(current)
        current = back(recording, current, PASSED)
    return found[::-1]
