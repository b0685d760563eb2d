"""What the curve of the loss says by itself."""
from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.losses import REGRESSION
from gradcheck_doctor.rules.optimizer.readings import largest_lr, lowered, update_ratios
from gradcheck_doctor.rules.progress import learned, phase_curve, phase_start

LEAST = 20             # losses
EXACT = 125            # place in the report of a sign that is read off the operations
LOGARITHMS = frozenset({"log_softmax", "logsigmoid"})          # of probabilities: 0 at most
PASSED = frozenset({"shape", "reduce", "scale", "other"})      # between them and the loss
#: Losses that are 0 at best.
POSITIVE = REGRESSION | {"cross_entropy", "binary_cross_entropy", "binary_cross_entropy_with_logits"}


class LossDivergence(Rule):
    """The loss ends clearly above where it began.

    What it measures: median of the last fifth of the losses over that of the first fifth; of a loss that cannot be negative and goes into backward with a
    minus sign, or of log-probabilities that go into it without one, how far it was raised.

    Why it matters: training makes the model worse.

    When it is harmless: adversarial losses (several optimizers: not judged), annealed losses; where another network, run without gradients on at least
    half of the observed steps, may set targets that move (a target network in reinforcement learning, a mean teacher): info.

    Sources: standard practice; two times the first fifth.
    """

    code = "GD706"
    name = "loss-divergence"
    summary = "the loss ends above where it began"
    threshold = Threshold(2.0, 2.0, "median of the last fifth / of the first fifth", "twice")
    order = 700
    explains = ("GD707", "GD305", "GD801", "GD802", "GD803")
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        values = phase_curve(recording)
        if len(values) < LEAST or len(recording.optimizers) > 1 and not phase_start(recording):
            return
        fifth = max(4, len(values) // 5)
        first, last = median(values[:fifth]), median(values[-fifth:])
        bare = _bare_logarithm(recording)
        if bare is not None and not math.isfinite(last):                 # it sank below every number: what came before that counts
            last = median([v for v in values if math.isfinite(v)][-3:] or [last])
        if not math.isfinite(last):
            return
        sinks = last < first < 0
        raised, bare = (_raised(recording), bare) if sinks else (None, None)
        sign = raised or bare                                            # the operation whose sign is wrong
        unbounded = last < 0 and first - last > 100 * max(1.0, abs(first))
        record = recording.optimizers[0] if recording.optimizers else None
        observed = len({seen.step for o in recording.operations for seen in o.observed})
        moving = 2 * recording.notes.get("steps_aside", 0) >= max(1, observed)
        yield Measurement(value=10.0 if unbounded else last / first if first > 0 or sign is not None else 0.0,
                          location=sign.called if sign is not None else record.built or record.stepped if record is not None else None,
                          cap="info" if moving else None, order=EXACT if sign is not None else None,
                          evidence={"first_fifth": first, "last_fifth": last, "unbounded": unbounded,
                                    "raised": recording.losses[0].op if raised is not None else "", "bare": bare is not None})

    def message(self, m: Measurement) -> str:
        first, last, raised = m.evidence["first_fifth"], m.evidence["last_fifth"], m.evidence["raised"]
        if raised:
            return f"{raised} goes into backward with a minus sign, so training raises it: from {-first:.3g} (first fifth) to {-last:.3g} (last fifth)"
        if m.evidence["bare"]:
            return (f"log-probabilities are minimised, not their negative: the right answers become less and less probable, from {first:.3g} (first fifth) "
                    f"to {last:.3g} (last fifth)")
        return f"the loss goes from {first:.3g} (first fifth) to {last:.3g} (last fifth)" + (", below every bound" if m.evidence["unbounded"] else "")

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if m.evidence["bare"]:
            return (Prescription("negate-loss", "Minimise the negative log-probability: put a minus in front", kind="loss", span=m.location),)
        if m.evidence["raised"]:
            return (Prescription("minimise-loss", f"Take the minus off: minimise {m.evidence['raised']}", kind="loss", span=m.location),)
        chosen = largest_lr(recording)
        cures = [Prescription("clip-by-norm", "Clip the gradient by norm, 1.0", kind="clip",
                              span=recording.optimizers[0].stepped if recording.optimizers else None, arguments={"max_norm": 1.0})]
        return (*(lowered(*chosen, 10) if chosen is not None else ()), *cures)


def _raised(recording: Recording) -> Operation | None:
    """The minus sign in front of the only loss, where that is the mean or sum of values that cannot be negative and the model's own weights are trained."""
    if len(recording.losses) != 1 or recording.losses[0].op not in POSITIVE or recording.losses[0].reduction == "none":
        return None
    users = recording.consumers.get(recording.losses[0].operation, ())
    minus = recording.operations[users[0]] if len(users) == 1 else None
    held = {name for o in recording.optimizers for g in o.groups for name in g.parameters}
    trained = any(p.name in held and p.module and len(p.shape) > 1 for p in recording.parameters)
    return minus if minus is not None and trained and minus.op == "neg" and not recording.consumers[minus.index] else None


def _bare_logarithm(recording: Recording) -> Operation | None:
    """The mean or sum that is the loss, of log-probabilities that nothing turned around."""
    ends = [o for o in recording.operations if o.requires_grad and not recording.consumers[o.index] and not o.shape and o.category == "reduce"]
    current = ends[0] if len(ends) == 1 else None
    while current is not None and current.op not in LOGARITHMS:
        makers = [o for o in (recording.operations[p] for p in current.producers) if o.requires_grad]
        current = makers[0] if len(makers) == 1 and current.category in PASSED and current.op not in ("neg", "rsub", "sub", "mul", "div") else None
    return ends[0] if current is not None else None


class LossOscillation(Rule):
    """The loss jumps up and down and hardly falls.

    What it measures: share of changes of direction of the loss, smoothed over tenths of the run, in a run whose updates are large (above 1e-2).

    Why it matters: the steps overshoot.

    When it is harmless: noisy small batches, adversarial and cyclic training; a run that learns. A loss of both signs (the difference of two energies)
    has no size to compare its swings with: not judged.

    Sources: TheDeepChecker (Ben Braiek and Khomh 2022).
    """

    code = "GD707"
    name = "loss-oscillation"
    summary = "the loss jumps and hardly falls"
    threshold = Threshold(0.6, None, "share of changes of direction", "more than half, over 50 windows")
    order = 710
    weak = True
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        values = [v for _, v in recording.curve if math.isfinite(v)]
        ratios = [r for r in update_ratios(recording) if math.isfinite(r)]
        if len(values) < 100 or len(recording.optimizers) > 1 or not ratios or median(ratios) < 1e-2 or learned(recording):
            return
        if min(values) < 0 < max(values):
            return
        size = len(values) // 50
        windows = [sum(values[i:i + size]) / size for i in range(0, size * 50, size)]
        changes = [b - a for a, b in zip(windows, windows[1:], strict=False)]
        turns = sum(a * b < 0 for a, b in zip(changes, changes[1:], strict=False)) / max(1, len(changes) - 1)
        swing = median(abs(c) for c in changes) / max(abs(median(windows)), 1e-30)
        if swing > 0.1:
            yield Measurement(value=turns, evidence={"turns": turns, "swing": swing})

    def message(self, m: Measurement) -> str:
        return f"the loss changes direction in {m.value:.0%} of 50 windows and swings by {m.evidence['swing']:.0%} of its size"
