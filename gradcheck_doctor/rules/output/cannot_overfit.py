from __future__ import annotations

import math
from collections.abc import Iterator

from gradcheck_doctor.records.recording import LossRecord, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.losses import REGRESSION

ROOM = 10              # trainable parameters for each target value: fewer cannot learn noise by heart
LEARNED = 0.05         # a first loss so small leaves nothing to learn
FLOOR_AT_ZERO = REGRESSION | {"cross_entropy", "nll_loss"}


class CannotOverfit(Rule):
    """The model cannot even learn one batch by heart, which any healthy network with enough weights does in no time.

    What it measures: on request (`doctor audit --overfit`), the least of the last ten losses of 300 steps on the one batch, over the first loss;
    with the given optimizer, or the best of Adam with learning rates 1e-3, 1e-2 and 1e-4. Dropout layers are off, the model comes back untouched.

    Why it matters: it is the cheapest proof that model, loss and labels belong together. Where it fails, the fault is not in the data or the schedule.

    When it is harmless: losses that do not end at 0 (label smoothing, soft targets, losses of unknown making), equal inputs with different targets,
    fewer than ten parameters for each target: info. A loss that still falls at the end, or a made-up batch: a warning. A small first loss says nothing.

    Sources: Karpathy, A Recipe for Training Neural Networks (2019): overfit a single batch; TheDeepChecker (Ben Braiek and Khomh 2022).
    """

    code = "GD607"
    name = "cannot-overfit"
    summary = "the model cannot learn one batch by heart (audit --overfit)"
    threshold = Threshold(0.1, 0.1, "loss after 300 steps on one batch / first loss", "healthy networks end below 0.05 (measured)")
    order = 660
    kinds = ("audit",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        tried = recording.notes.get("overfit")
        if not tried:
            return
        if not tried["first"] > LEARNED:
            yield Unmeasured("", f"the first loss is {tried['first']:.3g}: there is nothing to learn by heart")
            return
        loss = recording.losses[0] if recording.losses else None
        yield Measurement(value=tried["share"], op=loss.op if loss is not None else "", location=loss.span if loss is not None else None,
                          operations=(loss.operation,) if loss is not None and loss.operation >= 0 else (), cap=_cap(recording, tried["falling"]),
                          evidence={k: tried[k] for k in ("first", "last", "share", "steps", "rates")})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        rates = f" at any of the learning rates {', '.join(f'{r:g}' for r in e['rates'])}" if e["rates"] else ""
        return f"one batch cannot be learned by heart{rates}: after {e['steps']} steps the loss is {e['last']:.3g}, {m.value:.0%} of its start (limit 10 %)"


def _cap(recording: Recording, falling: bool) -> str | None:
    if not recording.losses or not all(_ends_at_zero(loss) for loss in recording.losses) or not _whole(recording):
        return "info"
    targets = sum(math.prod(loss.target_shape) for loss in recording.losses)
    twins = any(i.distinct_samples is not None and i.distinct_samples < min(i.shape[0], 256) for i in recording.inputs)
    if twins or recording.trainable_count < ROOM * targets:
        return "info"
    return "warning" if falling or any(i.synthetic for i in recording.inputs) else None


def _whole(recording: Recording) -> bool:
    """The known losses add up to what is minimised: no term with a floor of its own beside them."""
    end = next(o for o in reversed(recording.operations) if o.category != "shape")
    values = [loss.value for loss in recording.losses]
    if len(values) == 1 and (end.category == "loss" or end.op in ("mean", "sum")):
        return True
    seen = end.first.forward if end.first is not None else None
    return seen is not None and None not in values and abs(seen.mean - sum(v for v in values if v is not None)) <= 0.01 * abs(seen.mean)


def _ends_at_zero(loss: LossRecord) -> bool:
    """The loss of a perfect answer is 0."""
    if loss.op in ("binary_cross_entropy", "binary_cross_entropy_with_logits"):
        return loss.target_integer
    soft = loss.op == "cross_entropy" and not loss.target_one_hot and not loss.target_integer
    return loss.op in FLOOR_AT_ZERO and not loss.label_smoothing and not soft
