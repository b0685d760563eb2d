from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import bad_batch, first_nonfinite
from gradcheck_doctor.rules.progress import learned, phase_start

WINDOW = 20


class GradientSpike(Rule):
    """Now and then the gradient is many times larger than usual, and each such step throws the weights back.

    What it measures: the largest global gradient norm (unscaled, before clipping) over the running median of the 20 before it, where at least
    two such spikes of more than 10 times were seen and no clipping by norm was. One is enough where loss and gradient leap to ten times all
    before them while the weights had hardly moved: then a batch did it, not the learning rate.

    Why it matters: a single step with a thousand times the usual gradient can undo an epoch; after it ReLU units may be dead.

    When it is harmless: warm-up and the first steps (not counted), with clipping, or when the loss falls all the same. The gradients of a policy are
    heavy-tailed and its loss need not fall: spikes are information where a loss of unknown making takes both signs and is no higher after them.

    Sources: Pascanu et al. 2013 (arXiv:1211.5063); Géron, ch. 11.
    """

    code = "GD305"
    name = "gradient-spike"
    summary = "rare gradients many times the usual size"
    threshold = Threshold(10.0, 100.0, "largest norm / running median", "10 times the running median of 20 steps, twice")
    order = 480
    explains = ("GD706", "GD707", "GD201", "GD302", "GD701", "GD803", "GD802", "GD801", "GD301", "GD303", "GD209")
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        begin, broken = phase_start(recording), first_nonfinite(recording)
        first = recording.steps[-1].optimizer if recording.steps else 0         # each optimizer's own norms; the last one's phase
        norms = [(s.step, s.grad_norm) for s in recording.steps
                 if s.grad_norm is not None and s.step >= begin and s.optimizer == first and (broken is None or s.step < broken)]
        if len(recording.optimizers) > 1 and not begin:
            return                                                              # adversarial players: their norms jump by design
        spikes = spikes_of([n for _, n in norms])
        blow = bad_batch(recording)
        if blow is not None:
            usual = [n for step, n in norms if step < blow]
            spikes = spikes or [(blow, dict(norms).get(blow, math.inf) / median(usual))]
        ended = blow is not None or broken is not None and bool(spikes)
        if not ended and (len(norms) < 2 * WINDOW or len(spikes) < 2):
            return
        clips = [e for e in recording.events_of("clip_norm") if e.value]
        factor = max(f for _, f in spikes)
        record = recording.optimizers[0] if recording.optimizers else None
        harmless = clips or learned(recording) or not ended and _signless(recording, [norms[i][0] for i, _ in spikes])
        yield Measurement(value=factor, location=record.stepped if record is not None else None, cap="info" if harmless else None,
                          evidence={"spikes": len(spikes), "largest": factor, "steps": len(norms), "p90": sorted(n for _, n in norms)[int(0.9 * len(norms))],
                                    "clipped_at": clips[-1].value if clips else None, "clip": clips[-1].span if clips else None})

    def message(self, m: Measurement) -> str:
        return f"{m.evidence['spikes']} of {m.evidence['steps']} gradient norms are spikes, the largest {m.value:.3g} times the running median (limit {{limit}})"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        used, norm = m.evidence["clipped_at"], float(f"{m.evidence['p90']:.2g}")
        if used is not None:
            return () if norm >= used else (Prescription("clip-threshold", f"Clip at {norm:g} instead of {used:g}: 90 % of the norms are below it", kind="clip",
                                                         span=m.evidence["clip"], arguments={"max_norm": norm, "old": used}),)
        return (Prescription("clip-by-norm", "Clip the gradient by norm, 1.0", kind="clip", span=m.location, arguments={"max_norm": 1.0, "p90": m.evidence["p90"]}),)


def _signless(recording: Recording, steps: list[int]) -> bool:
    """A loss of unknown making that takes both signs, so that it need not fall, and lies no higher in the 20 steps behind each spike than it did before."""
    values = [v for _, v in recording.curve]
    if not recording.losses or any(x.op != "scalar" for x in recording.losses) or min(sum(v < 0 for v in values), sum(v > 0 for v in values)) < 2:
        return False
    for step in steps:
        past = [v for s, v in recording.curve if s < step][-WINDOW:]
        after = [v for s, v in recording.curve if s > step][:WINDOW]
        if past and after:
            middle = median(past)
            if median(after) > middle + 3.0 * median(abs(v - middle) for v in past):
                return False
    return True


def spikes_of(norms: list[float]) -> list[tuple[int, float]]:
    """(position, factor) of the norms above 10 times the median of the 20 before them."""
    found = []
    for i in range(WINDOW, len(norms)):
        usual = median(norms[i - WINDOW: i])
        factor = norms[i] / usual if usual > 0 else math.nan
        if not math.isfinite(norms[i]):
            factor = math.inf
        if factor >= 10.0:
            found.append((i, factor))
    return found
