"""A house's own rules for gradcheck_doctor: two rules and a treatment in one file.

Only `records`, `rules` and `treatments` are imported, never torch: a rule is a function of numbers that were seen.
"""
from __future__ import annotations

import ast
from collections.abc import Iterator

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import location, weight
from gradcheck_doctor.treatments.context import Context, constant

TILE = 8               # elements of 16 bits that a tensor core takes at once
USUAL_SMOOTHING = 0.1


class PaddedWidth(Rule):
    """The sizes of a linear layer are no multiples of 8, so a tensor core multiplies padding.

    What it measures: the share of padding in the weight once both sizes are rounded up to multiples of 8.

    Why it matters: with 16-bit floats the hardware works in tiles of 8; what is not a multiple is padded or takes a slower kernel.

    When it is harmless: in 32-bit training, on a CPU, in small layers; info there.

    Sources: NVIDIA, Deep Learning Performance guide, section on tensor core requirements.
    """

    code = "EX101"
    name = "padded-width"
    summary = "sizes of a linear layer are no multiples of 8"
    threshold = Threshold(0.25, None, "share of padding in the weight", "a quarter of the work is wasted", info=0.01)
    order = 550

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for operation in recording.operations:
            if operation.op != "linear":
                continue
            matrix = weight(recording, operation)
            if matrix is None:
                yield Unmeasured(operation.module, "its weight is no parameter")
                continue
            padded = [-(-size // TILE) * TILE for size in matrix.shape]
            half = matrix.dtype in ("float16", "bfloat16")
            yield Measurement(
                value=1 - matrix.count / (padded[0] * padded[1]), module=operation.module, op=operation.op, location=location(recording, operation),
                operations=(operation.index,), cap=None if half else "info", evidence={"shape": list(matrix.shape), "padded": padded, "dtype": matrix.dtype})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        return f"a {e['shape'][0]} x {e['shape'][1]} weight is padded to {e['padded'][0]} x {e['padded'][1]}: {m.value:.0%} of the work is on zeros (limit {{limit}})"


class StrongLabelSmoothing(Rule):
    """Label smoothing takes so much from the true class that the targets say little.

    What it measures: the `label_smoothing` argument of the loss calls.

    Why it matters: at 0.5 the true class gets little more than half of the target's mass; the loss of a perfect model is then far from 0.

    When it is harmless: very noisy labels.

    Sources: Szegedy et al. 2016 (arXiv:1512.00567) use 0.1.
    """

    code = "EX102"
    name = "strong-label-smoothing"
    summary = "label smoothing far above the usual 0.1"
    threshold = Threshold(0.3, 0.8, "label_smoothing", "three times what is usual; a house rule")
    order = 150

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for loss in recording.losses:
            yield Measurement(value=loss.label_smoothing, op=loss.op, location=loss.span, operations=(loss.operation,), evidence={"label_smoothing": loss.label_smoothing})

    def message(self, m: Measurement) -> str:
        return f"{m.op} has label_smoothing={m.value:g} (limit {{limit}}); {USUAL_SMOOTHING} is usual"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("label-smoothing", f"Use label_smoothing={USUAL_SMOOTHING}", kind="loss", span=m.location, arguments={"value": USUAL_SMOOTHING}),)


def set_label_smoothing(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The treatment `label-smoothing`: the number behind every `label_smoothing=` of the file that has the loss.

    Raises:
        TreatmentRefused: no call in the file gives it by keyword.
    """
    tree = context.tree(prescription.span.file if prescription.span is not None else None)
    given = [node.value for node in ast.walk(tree.root) if isinstance(node, ast.keyword) and node.arg == "label_smoothing"]
    if not given:
        raise TreatmentRefused("no call in this file gives label_smoothing by keyword")
    return [constant(tree, value, f"{prescription.arguments['value']:g}") for value in given]
