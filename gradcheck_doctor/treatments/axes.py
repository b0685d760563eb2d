"""Cures for the wrong axis: softmax over the batch, layers that take the batch for time."""
from __future__ import annotations

import ast

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.treatments.calls import argument
from gradcheck_doctor.treatments.context import Context


def softmax_axis(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The axis of a softmax, as keyword or as the last positional number."""
    tree = context.tree_of(prescription.span)
    call = tree.call(prescription.span)
    written = argument(call, "dim", len(call.args) - 1)
    if not isinstance(written, (ast.Constant, ast.UnaryOp)) or ast.literal_eval(written) != prescription.arguments["old"]:
        raise TreatmentRefused(f"the axis is not written in {tree.source(call)}; it has to be {prescription.arguments['dim']}")
    return [tree.replace(written, str(prescription.arguments["dim"]))]


def batch_first(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """batch_first=True where the layer is made."""
    tree = context.tree_of(prescription.span)
    call = tree.call(prescription.span)
    given = argument(call, "batch_first")
    if any(k.arg is None for k in call.keywords) or any(isinstance(a, ast.Starred) for a in call.args):
        raise TreatmentRefused("the layer's arguments are spread from elsewhere; give batch_first=True there")
    if given is not None:
        return [tree.replace(given, "True")]
    if not call.args and not call.keywords:
        raise TreatmentRefused("the layer is made without arguments here; give batch_first=True where they are")
    return [tree.keyword(call, "batch_first=True")]


PLANNERS = {"softmax-axis": softmax_axis, "batch-first": batch_first}
