from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured


class FrozenBatchNormDrift(Rule):
    """A frozen batch normalisation still runs in training mode: its running statistics move although its weights do not.

    What it measures: how far the running means of frozen BatchNorm layers moved, in running standard deviations, while they were in training mode.

    Why it matters: the frozen backbone changes under everything that relied on it. `requires_grad_(False)` does not stop it, `eval()` does.

    When it is harmless: adaptation of the statistics to new data on purpose. A target network whose weights follow another's (BYOL, mean teacher) is
    not frozen and is not judged.

    Sources: PyTorch's documentation of BatchNorm; Géron, ch. 11.
    """

    code = "GD505"
    name = "frozen-batchnorm-drift"
    summary = "frozen batch normalisation whose running statistics move"
    threshold = Threshold(0.05, None, "running standard deviations moved", "a twentieth of a standard deviation")
    order = 240
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        moved = {name: row for name, row in recording.notes.get("batchnorm", {}).items() if row["frozen_training_steps"] >= 2 and not row.get("follows")}
        if not moved:
            return
        name = max(moved, key=lambda n: moved[n]["change"])
        module = recording.module.get(name)
        yield Measurement(value=moved[name]["change"], module=name, modules=tuple(moved), op="batch_norm",
                          location=module.built if module is not None else None, evidence={"moved": moved[name]["change"], "layers": len(moved)})

    def message(self, m: Measurement) -> str:
        return f"{m.evidence['layers']} frozen BatchNorm layer(s) are in training mode; running means moved by {m.value:.2g} standard deviations"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("eval-batchnorm", "Put the frozen part in eval() after every train()", kind="norm", modules=m.modules),)
