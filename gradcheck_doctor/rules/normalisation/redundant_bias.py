from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import ahead, bias, location


class RedundantBias(Rule):
    """A bias in front of batch normalisation has no effect: the normalisation subtracts it again.

    What it measures: layers with a bias whose output goes straight into a batch or instance normalisation that uses batch statistics.

    Why it matters: only memory and a little time; its gradient is 0 up to rounding (1e-10 measured).

    When it is harmless: always, hence info; in evaluation mode the normalisation uses running statistics and the bias counts.

    Sources: Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3.2.
    """

    code = "GD502"
    name = "redundant-bias"
    summary = "a bias in front of batch normalisation"
    threshold = Threshold(None, None, "layers with such a bias", "exact", info=1.0)
    order = 520

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        found = []
        for operation in recording.operations:
            following = ahead(recording, operation, ("shape",)) if operation.category == "layer" and bias(recording, operation) is not None else None
            if following is not None and following.op in ("batch_norm", "instance_norm") and following.attributes.get("training", True):
                found.append(operation)
        if found:
            first = found[0]
            yield Measurement(value=float(len(found)), module=first.module, modules=tuple(dict.fromkeys(o.module for o in found)), op=first.op,
                              location=location(recording, first), operations=tuple(o.index for o in found), evidence={"layers": len(found)})

    def message(self, m: Measurement) -> str:
        return f"{m.evidence['layers']} layer(s) have a bias that the batch normalisation behind them removes again"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("drop-bias", "Build the layer with bias=False", safety="safe", kind="norm", modules=m.modules),)
