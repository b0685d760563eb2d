from __future__ import annotations

import math
from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import LossRecord, Operation, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import location
from gradcheck_doctor.rules.progress import mild, went_nowhere


class BatchMixing(Rule):
    """A view or reshape is used where a transpose was meant, or a softmax goes over the samples: they leak into each other.

    What it measures: view and reshape operations inside a model whose result has the same axis lengths in another order, which is no transpose
    but a scramble: 2 when the batch axis moved, 1 for two-dimensional ones outside a model, or in one that learns. Also 2: a permute took the batch off
    the first axis, and a view or reshape right behind it names the batch first again. Also 2: a fused recurrent or attention layer that takes the first
    axis for time gets the loss's batch there, and something else in the axis it takes for the batch. Also 2: a softmax over the first axis, inside a
    model, of values with as many samples there as the loss has, and no other axis of that length.

    Why it matters: each sample's prediction depends on the others in the batch; the loss may fall a little, evaluation on other batches fails.

    When it is harmless: axes of equal length (not counted), permutation tricks on purpose, a run that learns (info; a warning behind a permute).

    Sources: exact from the shapes; Lightning Bolts' batch gradient verification looks for the same fault by gradients.
    """

    code = "GD306"
    name = "batch-mixing"
    summary = "a reshape mixes samples of the batch"
    threshold = Threshold(2.0, None, "1: axes reordered by a view; 2: the batch axis among them, inside a model", "exact from the shapes", info=1.0)
    order = 140
    explains = ("GD707", "GD702", "GD102", "GD201", "GD301", "GD303")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        sizes = {loss.target_shape[0]: loss for loss in recording.losses if loss.target_shape and loss.input_shape[:1] == loss.target_shape[:1]}
        for operation in recording.operations:
            loss = sizes.get(operation.input_shapes[0][0]) if operation.input_shapes and operation.input_shapes[0] else None
            if loss is not None and _batch_as_time(operation, loss):
                yield Measurement(value=2.0, module=operation.module, op=operation.op, location=location(recording, operation),
                                  operations=(operation.index,), cap=mild(recording), evidence={"before": operation.input_shapes[0], "time_first": True})
            if loss is not None and _over_samples(operation):
                yield Measurement(value=2.0, module=operation.module, op=operation.op, location=operation.called, operations=(operation.index,),
                                  cap=mild(recording, "warning"), evidence={"before": operation.input_shapes[0], "axis": operation.attributes["dim"]})
            if operation.op not in ("view", "reshape") or not operation.input_shapes:
                continue
            before, after = operation.input_shapes[0], operation.shape
            if _batch_left_behind(recording, operation):
                yield Measurement(value=2.0, module=operation.module, op=operation.op, location=location(recording, operation),
                                  operations=(operation.index,), cap=mild(recording, "warning"), evidence={"before": before, "after": after})
                continue
            if len(before) < 2 or before == after or sorted(before) != sorted(after) or before[0] <= 1 or len(set(before)) < len(before):
                continue
            moved = bool(operation.module_type) and after[0] != before[0]
            inside = moved and (len(before) > 2 or before[0] in sizes and went_nowhere(recording))
            if inside or len(before) == 2:
                yield Measurement(value=2.0 if inside else 1.0, module=operation.module, op=operation.op, location=location(recording, operation),
                                  operations=(operation.index,), cap=mild(recording), evidence={"before": before, "after": after})

    def message(self, m: Measurement) -> str:
        if m.evidence.get("time_first"):
            return f"{m.op} takes the first axis of {m.evidence['before']} for time, but it is the batch: samples follow each other as if they were one sequence"
        if "axis" in m.evidence:
            return f"{m.op} over axis 0 of {m.evidence['before']}, the samples: what is computed of each depends on the others in its batch"
        return f"{m.op} turns {m.evidence['before']} into {m.evidence['after']}: that is no transpose, it mixes the samples of the batch"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if m.evidence.get("time_first"):
            return (Prescription("batch-first", "Say that the batch comes first: batch_first=True", kind="model", span=m.location, modules=(m.module,)),)
        if "axis" in m.evidence:
            axes = range(1, len(m.evidence["before"]))
            return tuple(Prescription("softmax-axis", f"Take the {m.op} over axis {axis}", kind="model", span=m.location, modules=(m.module,),
                                      arguments={"old": m.evidence["axis"], "dim": axis}) for axis in axes if m.evidence["before"][axis] > 1)
        before, after = m.evidence["before"], m.evidence["after"]
        if len(set(before)) == len(before) and sorted(before) == sorted(after):
            order = tuple(before.index(length) for length in after)
            return (Prescription("permute-axes", "Move the axes instead of cutting the numbers anew", kind="model", span=m.location, modules=(m.module,),
                                 arguments={"axes": order}),)
        return ()


def _over_samples(operation: Operation) -> bool:
    """A softmax over the first axis of values that have no other axis of that length (a matrix of similarities has)."""
    shape = operation.input_shapes[0]
    return (operation.op in ("softmax", "gumbel_softmax") and operation.attributes.get("dim") in (0, -len(shape)) and len(shape) >= 2 and bool(operation.module_type)
            and shape[0] > 1 and shape[0] not in shape[1:] and any(n > 1 for n in shape[1:]))


def _batch_as_time(operation: Operation, loss: LossRecord) -> bool:
    """The layer's second axis, which it takes for the batch, is an axis neither of the predictions nor of the targets (or these are (time, batch))."""
    fused = operation.category == "recurrent" and operation.attributes.get("batch_first") is False or operation.op == "multi_head_attention_forward"
    shape = operation.input_shapes[0]
    return (fused and len(shape) == 3 and shape[0] > 1 and shape[1] > 1 and shape[1] != shape[0]
            and shape[1] not in (*loss.target_shape[1:], *loss.input_shape[1:]))


def _batch_left_behind(recording: Recording, operation: Operation) -> bool:
    """(B, C, H, W) is permuted to (H, W, B, C) and then reshaped to (B, ...): the elements of a sample do not lie together."""
    moved = recording.operations[operation.producers[0]] if operation.producers else None
    if moved is None or moved.op not in ("permute", "transpose", "movedim") or not moved.input_shapes or not operation.module_type:
        return False
    start, before, after = moved.input_shapes[0], operation.input_shapes[0], operation.shape
    if len(start) < 3 or not after or start[0] <= 1 or start.count(start[0]) > 1 or sorted(start) != sorted(before):
        return False
    ahead = math.prod(before[: before.index(start[0])])
    return ahead > 1 and after[0] == start[0]
