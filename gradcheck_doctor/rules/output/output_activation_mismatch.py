from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import LossRecord, Recording
from gradcheck_doctor.records.ways import LAYERS, behind
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import location, loss_input
from gradcheck_doctor.rules.losses import REGRESSION
from gradcheck_doctor.rules.progress import mild


class OutputActivationMismatch(Rule):
    """The last activation cannot reach the targets: ReLU for negative ones, sigmoid for values outside [0, 1].

    What it measures: share of the targets outside the range of the last activation; for classification scores, whether ReLU cuts them.

    Why it matters: those samples have an error that no weights can remove, and ReLU gives them no gradient.

    When it is harmless: counts, depths and codes that are never negative.

    Sources: Géron, ch. 10 (output activations for regression).
    """

    code = "GD603"
    name = "output-activation-mismatch"
    summary = "the last activation cannot reach the targets"
    threshold = Threshold(0.01, 0.2, "share of targets out of reach", "1 % of the samples")
    order = 110
    explains = ("GD201", "GD202", "GD301", "GD707", "GD702", "GD604", "GD608", "GD303", "GD208")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for loss in recording.losses:
            last = loss_input(recording, loss)
            if last is None or last.category != "activation":
                continue
            if loss.op in REGRESSION and loss.target_outside is not None and not loss.target_one_hot:
                value, what = loss.target_outside, "of the targets"
            elif loss.op in ("cross_entropy", "binary_cross_entropy_with_logits") and last.op in ("relu", "relu6"):
                value, what = 1.0, "the negative scores"
            else:
                continue
            yield Measurement(value=value, module=last.module, op=last.op, location=location(recording, last), operations=(last.index, loss.operation),
                              evidence={"share": value, "what": what, "activation": last.op, "target_min": loss.target_min, "target_max": loss.target_max,
                                        "loss": loss.op})

        if all(loss.op == "scalar" for loss in recording.losses):
            yield from self._by_hand(recording)

    def _by_hand(self, recording: Recording) -> Iterator[Measurement]:
        """A loss of the user's making on the difference of prediction and targets, with no layer behind that."""
        for row in recording.notes.get("differences", ()):
            last = loss_input(recording, LossRecord(operation=row["operation"], op="sub"))
            if last is not None and last.category == "activation" and not any(o.category in LAYERS for o in behind(recording, [row["operation"]])):
                yield Measurement(value=row["outside"], module=last.module, op=last.op, location=location(recording, last),
                                  operations=(last.index, row["operation"]), cap=mild(recording),
                                  evidence={"share": row["outside"], "what": "of the targets", "activation": last.op, "target_min": row["min"],
                                            "target_max": row["max"], "loss": "difference"})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        span = f" (they run from {e['target_min']:.3g} to {e['target_max']:.3g})" if e["what"] == "of the targets" and e["target_min"] is not None else ""
        if e["what"] == "the negative scores":
            return f"{e['activation']} is the last activation in front of {e['loss']}, which needs negative scores, too: no score can fall below 0"
        return f"{e['activation']} is the last activation and cannot reach {m.value:.0%} {e['what']}{span}"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("remove-output-activation", f"Let the output be linear: remove the last {m.evidence['activation']}", kind="loss",
                             modules=(m.module,), span=m.location, arguments={"op": m.evidence["activation"]}),)
