"""Cures for the wrong axis and the missing scale: softmax over the batch, layers that take the batch for time, scores not divided by sqrt(width)."""
from __future__ import annotations

import ast

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.treatments.calls import argument
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.flows import origins

LOGARITHM = {"softmax": "log_softmax", "Softmax": "LogSoftmax"}
STACKS = ("TransformerEncoder", "TransformerDecoder")


def softmax_axis(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The axis of a softmax, as keyword or as the last positional number."""
    tree = context.tree_of(prescription.span)
    call = tree.call(prescription.span)
    written = argument(call, "dim", len(call.args) - 1)
    if not isinstance(written, (ast.Constant, ast.UnaryOp)) or ast.literal_eval(written) != prescription.arguments["old"]:
        raise TreatmentRefused(f"the axis is not written in {tree.source(call)}; it has to be {prescription.arguments['dim']}")
    return [tree.replace(written, str(prescription.arguments["dim"]))]


def log_softmax(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """softmax(x, 1), x.softmax(1) and nn.Softmax(1) become log_softmax(x, 1), x.log_softmax(1) and nn.LogSoftmax(1)."""
    tree = context.tree_of(prescription.span)
    called = tree.call(prescription.span).func
    text = tree.source(called)
    owner, _, name = text.rpartition(".")
    if name not in LOGARITHM or not owner:
        raise TreatmentRefused(f"{text} is no softmax of torch; take its logarithm with log_softmax")
    return [tree.replace(called, f"{owner}.{LOGARITHM[name]}")]


def permute_axes(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """x.view(T, B, C) of a (B, T, C) becomes x.transpose(0, 1)."""
    tree = context.tree_of(prescription.span)
    call = tree.call(prescription.span)
    axes = [int(axis) for axis in prescription.arguments["axes"]]
    moved = [place for place, axis in enumerate(axes) if place != axis]
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("view", "reshape"):
        raise TreatmentRefused(f"no view or reshape stands there; the axes belong in the order {axes}")
    of = call.args[0] if tree.source(call.func.value) == tree.torch().rstrip(".") and call.args else call.func.value
    how = f"transpose({moved[0]}, {moved[1]})" if len(moved) == 2 else f"permute({', '.join(map(str, axes))})"
    return [tree.replace(call, f"{tree.operand(of)}.{how}")]


def batch_first(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """batch_first=True where the layer is made; of a TransformerEncoder where the layer is made that it repeats."""
    tree = context.tree_of(prescription.span)
    call = tree.call(prescription.span)
    if tree.source(call.func).endswith(STACKS):
        repeated = argument(call, "encoder_layer", 0) or argument(call, "decoder_layer")
        made = [n for n in origins(tree, repeated) if isinstance(n, ast.Call)] if repeated is not None else []
        if len(made) != 1:
            raise TreatmentRefused("the layer that is repeated was not found; give batch_first=True where it is made")
        call = made[0]
    given = argument(call, "batch_first")
    if any(k.arg is None for k in call.keywords) or any(isinstance(a, ast.Starred) for a in call.args):
        raise TreatmentRefused("the layer's arguments are spread from elsewhere; give batch_first=True there")
    if given is not None:
        return [tree.replace(given, "True")]
    if not call.args and not call.keywords:
        raise TreatmentRefused("the layer is made without arguments here; give batch_first=True where they are")
    return [tree.keyword(call, "batch_first=True")]


def scale_scores(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """q @ k becomes (q @ k) / 64 ** 0.5: attention scores of unit variance."""
    tree = context.tree_of(prescription.span)
    product = tree.expression(prescription.span)
    text = f"{tree.operand(product)} / {prescription.arguments['width']} ** 0.5"
    around = tree.parents.get(product)
    return [tree.replace(product, f"({text})" if isinstance(around, (ast.BinOp, ast.Attribute)) else text)]


PLANNERS = {"scale-scores": scale_scores, "log-softmax": log_softmax, "softmax-axis": softmax_axis, "batch-first": batch_first, "permute-axes": permute_axes}
