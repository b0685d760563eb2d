"""Two ways in which an update is not what the gradient asked for: weight decay outweighs it, or rounding loses it."""
from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.progress import mild

COLLAPSED, START = 0.5, 5      # where less than that is left of the weights the first steps are judged, too
MOST = 0.9             # of the updates: lost in a run that learns all the same
SHRUNK = 0.7           # median ||w|| at the end over ||w|| at the start


class DecayDominates(Rule):
    """Weight decay pulls harder on the weights than the loss does.

    What it measures: weight decay times ||w|| over ||g||, median over the weights and observed steps, for decay that is part of the gradient (over
    the first five steps where the weights lost more than half of their size: in the end the two balance each other); info unless the weights really
    shrank below 70 % of their first size (a gradient that vanished for another reason is outweighed by any decay).

    Why it matters: the weights shrink towards zero whatever the data say.

    When it is harmless: decoupled decay (AdamW), late in training, a run that learns.

    Sources: TheDeepChecker (Ben Braiek and Khomh 2022).
    """

    code = "GD709"
    name = "decay-dominates"
    summary = "weight decay outweighs the gradient"
    threshold = Threshold(5.0, 50.0, "||decay w|| / ||g||", "TheDeepChecker: 2 five times; the median over the whole run is judged here", info=2.0)
    order = 488
    explains = ("GD701", "GD707", "GD208", "GD608", "GD201", "GD301", "GD501", "GD706", "GD304", "GD102")
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for record in recording.optimizers:
            decay = max((g.weight_decay for g in record.groups), default=0.0)
            if decay <= 0 or record.name not in ("SGD", "Adam", "RMSprop", "Adagrad"):
                continue
            rows = [(row.step, decay * row.weight_norm / row.grad_norm) for p in recording.parameters if len(p.shape) >= 2
                    for row in recording.parameter_steps.get(p.name, ()) if row.grad_norm and row.weight_norm]
            ratios = [ratio for _, ratio in rows]
            if len(ratios) >= 10:
                left = weights_left(recording)
                begin = min(step for step, _ in rows)
                if left is not None and left < COLLAPSED:           # they shrank until the gradient held against the decay: how it began tells
                    ratios = max(ratios, [ratio for step, ratio in rows if step < begin + START], key=median)
                gone = left is not None and left < COLLAPSED / 5 and median(ratios) >= 2.0
                yield Measurement(value=median(ratios), floor="warning" if gone else None, location=record.built,
                                  cap="info" if left is None or left > SHRUNK else mild(recording),
                                  evidence={"ratio": median(ratios), "weight_decay": decay, "weights_left": left})

    def message(self, m: Measurement) -> str:
        left = m.evidence["weights_left"]
        return (f"weight decay {m.evidence['weight_decay']:g} pulls {m.value:.3g} times as hard as the gradient (limit {{limit}})"
                + (f"; the weights end at {left:.0%} of their size" if left is not None else ""))

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        decay = m.evidence["weight_decay"]
        factor = 10 ** math.ceil(math.log10(max(10.0, m.value)))
        return tuple(Prescription("weight-decay", f"Lower the weight decay from {decay:g} to {new:g}", kind="optimizer", span=m.location,
                                  arguments={"weight_decay": new, "old": decay}) for new in (decay / factor, decay / factor / 10, 0.0))


def weights_left(recording: Recording) -> float | None:
    """Median over the weights of the last norm over the first; None where fewer than two were seen."""
    shares = []
    for parameter in recording.parameters:
        norms = [r.weight_norm for r in recording.parameter_steps.get(parameter.name, ()) if r.weight_norm is not None and math.isfinite(r.weight_norm)]
        if len(parameter.shape) >= 2 and len(norms) >= 2 and norms[0] > 0:
            shares.append(norms[-1] / norms[0])
    return median(shares) if shares else None


class LostUpdate(Rule):
    """Updates are lost to rounding: adding them to the weight gives the same weight again.

    What it measures: share of the sampled elements with a gradient whose value did not change in the step, median over observed steps. Info below nine
    tenths where the run learns: what is left of the updates sufficed.

    Why it matters: in bfloat16 a change below 1/256 of the weight is lost; training stands still.

    When it is harmless: optimizers with stochastic rounding or Kahan sums; learning rate 0 in a warm-up.

    Sources: the precision of the formats (float32 2^-24, bfloat16 2^-9 relative).
    """

    code = "GD703"
    name = "lost-update"
    summary = "updates lost to rounding"
    threshold = Threshold(0.5, MOST, "share of elements", "half of them")
    order = 505
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        shares: dict[str, float] = {}
        for p in recording.parameters:
            rows = [r.lost for r in recording.parameter_steps.get(p.name, ()) if r.lost is not None and r.grad_norm]
            if len(p.shape) >= 2 and len(rows) >= 5 and p.dtype in ("bfloat16", "float16"):
                shares[p.name] = median(rows)
        if shares:
            worst = max(shares, key=lambda n: shares[n])
            record = recording.parameter[worst]
            yield Measurement(value=shares[worst], module=record.module, location=recording.optimizers[0].built if recording.optimizers else None,
                              cap=mild(recording, "warning" if shares[worst] >= MOST else "info"), evidence={"parameter": worst, "dtype": record.dtype})

    def message(self, m: Measurement) -> str:
        return f"{m.value:.0%} of the updates of {m.evidence['parameter']} ({m.evidence['dtype']}) are lost to rounding; keep float32 master weights"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("float32-weights", "Keep the weights in float32", kind="optimizer", span=m.location),)
