from __future__ import annotations

import math
from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import LossRecord, Operation, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import location, loss_input
from gradcheck_doctor.rules.losses import PROBABILITIES

POSITIVE = ("softplus", "exp", "relu", "square")


class LossInputMismatch(Rule):
    """The loss expects something else than the network gives: probabilities where it wants scores, or scores where it wants probabilities.

    What it measures: the last activation in front of the loss and the range of the values, against what the loss function is defined for.

    Why it matters: softmax before cross-entropy applies softmax twice: the loss cannot fall below -log(e / (e + C - 1)) and the gradient is tiny.
    NLLLoss on raw scores is unbounded below; log-probabilities over the samples instead of the classes are none. Sigmoid before BCEWithLogits keeps every
    probability between 0.5 and 0.73.

    When it is harmless: log_softmax before cross-entropy changes nothing (info); softmax used for metrics only is not in front of the loss.

    Sources: PyTorch's documentation of the losses; UMLAUT (Schoop et al. 2021).
    """

    code = "GD601"
    name = "loss-input-mismatch"
    summary = "the loss expects something else than the network gives"
    threshold = Threshold(2.0, 2.0, "exactness of the mismatch", "exact: read off the operations", info=1.0)
    order = 100
    explains = ("GD301", "GD302", "GD208", "GD201", "GD202", "GD603", "GD604", "GD706", "GD707", "GD702", "GD608", "GD209", "GD701", "GD305",
                "GD303", "GD602", "GD801", "GD802", "GD803", "GD807")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for loss in recording.losses:
            last = loss_input(recording, loss)
            found = _mismatch(loss, last) or _of_rates(recording, loss, last)
            if last is None or found is None:
                continue
            value, what, cure = found
            activation = last.category == "activation"
            place = location(recording, last) if activation and cure in ("remove-output-activation", "softmax-axis", "log-softmax") else loss.span
            yield Measurement(value=value, module=last.module if activation else "", op=loss.op, location=place,
                              operations=(last.index, loss.operation),
                              evidence={"what": what, "cure": cure, "loss": loss.op, "activation": last.op if activation else "",
                                        "axis": last.attributes.get("dim"), "input_min": loss.input_min,
                                        "input_max": loss.input_max})

    def message(self, m: Measurement) -> str:
        return str(m.evidence["what"])

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        e = m.evidence
        if e["cure"] == "remove-output-activation":
            either = e["activation"] == "sigmoid" and e["loss"] == "binary_cross_entropy_with_logits"
            title = "Apply the sigmoid once: in the loss, or in the model and none in the loss" if either else f"Remove the {e['activation']} in front of {e['loss']}"
            return (Prescription("remove-output-activation", title, kind="loss",
                                 modules=(m.module,), span=m.location, arguments={"op": e["activation"]}),)
        if e["cure"] == "softmax-axis":
            return (Prescription("softmax-axis", f"Take the {e['activation']} over the classes, axis 1", kind="loss", modules=(m.module,), span=m.location,
                                 arguments={"dim": 1, "old": e["axis"]}),)
        if e["cure"].startswith("log_input"):
            return (Prescription("loss-option", f"Build the loss with {e['cure']}", kind="loss", span=m.location,
                                 arguments={"name": "log_input", "value": e["cure"].endswith("True"), "losses": ("PoissonNLLLoss", "poisson_nll_loss")}),)
        if e["cure"] == "log-softmax":
            return (Prescription("log-softmax", f"Give {m.op} the log_softmax", kind="loss", modules=(m.module,), span=m.location),)
        if e["cure"]:
            return (Prescription("replace-loss", f"Use {e['cure']} on the raw scores", kind="loss", span=m.location, arguments={"to": e["cure"]}),)
        return ()


def _of_rates(recording: Recording, loss: LossRecord, last: Operation | None) -> tuple[float, str, str] | None:
    """As `_mismatch`, of a Poisson likelihood: the logarithm of a rate, or the rate?"""
    if loss.op != "poisson_nll_loss" or last is None:
        return None
    logarithm = recording.operations[loss.operation].attributes.get("log_input", True) is not False
    if logarithm and last.op in POSITIVE:
        return 2.0, f"poisson_nll_loss takes the logarithm of the rate (log_input=True) but gets what {last.op} keeps above 0: no rate can fall below 1", "log_input=False"
    if not logarithm and last.op not in POSITIVE and loss.input_min is not None and loss.input_min < 0:
        return 2.0, f"poisson_nll_loss takes the rate (log_input=False) but gets values down to {loss.input_min:.3g}: no rate is negative", "log_input=True"
    return None


def _mismatch(loss: LossRecord, last: Operation | None) -> tuple[float, str, str] | None:
    """(exactness, sentence, cure) when prediction and loss do not fit."""
    if last is None:
        return None
    op, low, high = last.op, loss.input_min, loss.input_max
    shape = loss.input_shape
    if (op in ("softmax", "log_softmax") and loss.op in ("nll_loss", "cross_entropy") and len(shape) == 2 and last.shape == shape and shape[0] > 1
            and last.attributes.get("dim") in (0, -2)):
        return 2.0, f"{op} over axis 0 of {shape}, the samples: the classes of one sample do not compete, and no sample stands for itself", "softmax-axis"
    if loss.op == "cross_entropy":
        if op in PROBABILITIES:
            floor = f"below {math.log1p((loss.classes - 1) / math.e):.3g}" if loss.classes and loss.classes > 1 else "to 0"      # scores within [0, 1]
            return 2.0, f"{op} in front of cross_entropy, which applies log-softmax itself: the loss cannot fall {floor}", "remove-output-activation"
        if op == "log_softmax":
            return 1.0, "log_softmax in front of cross_entropy is done twice; harmless, but one is enough", "remove-output-activation"
        if loss.classes == 1:
            return 2.0, "cross_entropy over a single class is always 0; a single score needs a binary loss", "binary_cross_entropy_with_logits"
    if loss.op == "binary_cross_entropy_with_logits" and op in (*PROBABILITIES, "log_softmax", "logsigmoid"):
        return 2.0, f"{op} in front of binary_cross_entropy_with_logits, which applies the sigmoid itself", "remove-output-activation"
    if loss.op == "binary_cross_entropy" and op not in PROBABILITIES and low is not None and high is not None and (low < 0 or high > 1):
        return 2.0, f"binary_cross_entropy needs probabilities but gets values from {low:.3g} to {high:.3g}", "binary_cross_entropy_with_logits"
    if loss.op == "nll_loss" and op not in ("log_softmax", "logsigmoid", "log") and high is not None and (high > 1e-6 or op in PROBABILITIES):
        what = f"nll_loss needs log-probabilities (at most 0) but gets values up to {high:.3g}"
        return 2.0, what, "log-softmax" if op == "softmax" else "cross_entropy"
    if loss.op == "ctc_loss" and op == "softmax":
        return 2.0, "ctc_loss needs log-probabilities but gets the probabilities of a softmax: whatever the network says, exp of them lies between 1 and 2.7", "log-softmax"
    return None
