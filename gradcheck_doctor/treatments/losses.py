"""Cures where the loss is computed: the right loss by name, its mean, matching shapes, an output on the targets' scale."""
from __future__ import annotations

import ast

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.tree import Tree

NAMES = {"cross_entropy": {"NLLLoss": "CrossEntropyLoss", "nll_loss": "cross_entropy", "MSELoss": "CrossEntropyLoss", "mse_loss": "cross_entropy",
                           "L1Loss": "CrossEntropyLoss", "l1_loss": "cross_entropy"},
         "binary_cross_entropy_with_logits": {"BCELoss": "BCEWithLogitsLoss", "binary_cross_entropy": "binary_cross_entropy_with_logits",
                                              "CrossEntropyLoss": "BCEWithLogitsLoss"}}


def replace_loss(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The right loss by its name, class or function; class numbers instead of what was made of them."""
    tree = context.tree(prescription.span.file if prescription.span is not None else None)
    names = NAMES.get(str(prescription.arguments.get("to")), {})
    edits = []
    for node in ast.walk(tree.root):
        if isinstance(node, (ast.Attribute, ast.Name)):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if name in names and not isinstance(tree.parents.get(node), ast.Attribute):
                whole = tree.source(node)
                edits.append(tree.replace(node, whole[: len(whole) - len(name)] + names[name]))
    if not edits:
        raise TreatmentRefused("the loss is not named in this file")
    return edits + (_class_numbers(tree, prescription) if finding.evidence.get("wrong") else [])


def _class_numbers(tree: Tree, prescription: Prescription) -> list[Edit]:
    """y[i].float().unsqueeze(1).expand_as(out) as target becomes y[i]."""
    call = tree.call(prescription.span)
    target = next((k.value for k in call.keywords if k.arg == "target"), call.args[1] if len(call.args) > 1 else None)
    current, peeled = target, []
    while (isinstance(current, ast.Call) and isinstance(current.func, ast.Attribute)
           and current.func.attr in ("float", "unsqueeze", "expand", "expand_as", "repeat", "to", "view", "reshape", "double")):
        peeled.append(current.func.attr)
        current = current.func.value
    if target is None or current is None or "float" not in peeled:
        raise TreatmentRefused("cross_entropy needs the class numbers as targets (dtype long); give them where the loss is called")
    return [tree.replace(target, tree.source(current))]


def mean_reduction(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """reduction="mean" in place of "sum"."""
    tree = context.tree(prescription.span.file if prescription.span is not None else None)
    edits = [tree.replace(k.value, '"mean"') for n in ast.walk(tree.root) if isinstance(n, ast.Call) for k in n.keywords
             if k.arg == "reduction" and isinstance(k.value, ast.Constant) and k.value.value == "sum"]
    if not edits:
        raise TreatmentRefused('reduction="sum" does not stand in this file')
    return edits


def match_shapes(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The target takes the prediction's shape: target.view_as(prediction)."""
    tree = context.tree(prescription.span.file if prescription.span is not None else None)
    call = tree.call(prescription.span)
    if len(call.args) < 2 or not isinstance(call.args[0], ast.Name):
        raise TreatmentRefused("give the prediction a name first, then write target.view_as(prediction)")
    prediction, target = call.args[0], call.args[1]
    text = tree.source(target)
    simple = isinstance(target, (ast.Name, ast.Attribute, ast.Call, ast.Subscript))
    return [tree.replace(target, f"{text if simple else f'({text})'}.view_as({tree.source(prediction)})")]


def scale_output(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """What forward returns is multiplied by the targets' standard deviation and moved to their mean."""
    tree = context.tree()
    forwards = [n for n in ast.walk(tree.root) if isinstance(n, ast.FunctionDef) and n.name == "forward"]
    ends = [n for f in forwards for n in ast.walk(f) if isinstance(n, ast.Return) and n.value is not None]
    if len(forwards) != 1 or len(ends) != 1 or isinstance(ends[0].value, (ast.Tuple, ast.Dict)):
        raise TreatmentRefused("there is not exactly one forward with one output; standardise the targets before training and undo it on the predictions")
    value = ends[0].value
    assert value is not None
    text = tree.source(value)
    simple = isinstance(value, (ast.Name, ast.Attribute, ast.Call, ast.Subscript))
    mean, std = float(prescription.arguments["mean"]), float(prescription.arguments["std"])
    shift = "" if abs(mean) < 0.05 * std else f" {'+' if mean > 0 else '-'} {abs(mean):.4g}"
    return [tree.replace(value, f"{text if simple else f'({text})'} * {std:.4g}{shift}")]


PLANNERS = {"replace-loss": replace_loss, "mean-reduction": mean_reduction, "match-shapes": match_shapes, "scale-output": scale_output}
