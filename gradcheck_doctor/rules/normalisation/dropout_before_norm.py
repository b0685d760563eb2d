from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import ahead, location


class DropoutBeforeNorm(Rule):
    """Dropout stands in front of a batch normalisation, which then learns the variance of dropped-out signals.

    What it measures: dropout operations (p > 0) followed by a batch normalisation with at most layers and activations between.

    Why it matters: in evaluation the variance is smaller than the running one (variance shift). In trials it cost at most 0.03 r2, and deeper or
    heavier nets were as good or better: so it is info.

    When it is harmless: mostly.

    Sources: Li et al. 2019 (arXiv:1801.05134); trials in this project.
    """

    code = "GD504"
    name = "dropout-before-norm"
    summary = "dropout in front of batch normalisation"
    threshold = Threshold(None, None, "such pairs", "trials: 0.03 r2 at most", info=1.0)
    order = 525

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for operation in recording.operations:
            if operation.category != "dropout" or not operation.attributes.get("p", 0.5) or not operation.attributes.get("training", True):
                continue
            following = ahead(recording, operation, ("shape", "activation", "layer", "pool"))
            if following is not None and following.op == "batch_norm":
                yield Measurement(value=1.0, module=operation.module, op=operation.op, location=location(recording, operation),
                                  operations=(operation.index, following.index), evidence={"p": operation.attributes.get("p", 0.5)})

    def message(self, m: Measurement) -> str:
        return f"dropout (p={m.evidence['p']:g}) in front of a batch normalisation shifts its variance between training and evaluation"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("swap-dropout-norm", "Dropout after the normalisation", kind="norm", modules=(m.module,)),)
