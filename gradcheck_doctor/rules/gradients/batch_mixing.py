from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import location


class BatchMixing(Rule):
    """The batch axis is folded into another one: samples leak into each other.

    What it measures: view and reshape operations after which the first axis is no longer the batch while a later layer treats it so, found
    from shapes: the batch size is gone although the number of samples is unchanged, and the loss sees the batch again.

    Why it matters: each sample's prediction depends on the others in the batch; training seems to work and evaluation does not.

    When it is harmless: contrastive losses and in-batch attention do it on purpose; info only.

    Sources: Lightning Bolts' batch gradient verification.
    """

    code = "GD306"
    name = "batch-mixing"
    summary = "a reshape mixes samples of the batch"
    threshold = Threshold(None, None, "suspicious reshapes", "shape reasoning only", info=1.0)
    order = 350

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for operation in recording.operations:
            if operation.op not in ("view", "reshape") or not operation.input_shapes:
                continue
            before, after = operation.input_shapes[0], operation.shape
            if len(before) == 2 and len(after) == 2 and before[0] > 1 and before == tuple(reversed(after)) and before[0] != before[1]:
                yield Measurement(value=1.0, module=operation.module, op=operation.op, location=location(recording, operation),
                                  operations=(operation.index,), evidence={"before": before, "after": after})

    def message(self, m: Measurement) -> str:
        return f"{m.op} turns {m.evidence['before']} into {m.evidence['after']}: that is no transpose, it mixes the samples of the batch"
