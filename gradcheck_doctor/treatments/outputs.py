"""The output layer's bias at the start: the mean of the targets, or the shares of the classes."""
from __future__ import annotations

import ast
from collections.abc import Sequence

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.treatments.calls import attribute, owner
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.tree import Tree

HEADS = ("linear", "conv1d", "conv2d", "conv3d")


def target_bias(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The output bias starts at the mean of the targets, in front of the optimizer."""
    tree, statement, bias = _bias(context)
    value = float(prescription.arguments["value"])
    return [_once(tree, statement, [f"{tree.nn()}init.constant_({bias}, {value:.4g})"])]


def class_prior(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The output bias starts at the logarithm of the class shares (the log odds of a single unit), in front of the optimizer."""
    tree, statement, bias = _bias(context)
    values = prescription.arguments.get("value", prescription.arguments.get("values"))
    if isinstance(values, (int, float)):
        return [_once(tree, statement, [f"{tree.nn()}init.constant_({bias}, {float(values):.4g})"])]
    if isinstance(values, Sequence) and not isinstance(values, str) and values:
        numbers = ", ".join(f"{float(v):.4g}" for v in values)
        return [_once(tree, statement, [f"with {tree.torch()}no_grad():", f"    {bias}.copy_({tree.torch()}tensor([{numbers}]))"])]
    raise TreatmentRefused(f"the shares of the classes are not in the report; in front of the optimizer, under torch.no_grad(), write "
                           f"{bias}.copy_(torch.log(torch.bincount(targets) / len(targets)))")


def zero_output_bias(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """What fills the bias of the output layer fills it with zeros."""
    tree = context.tree_of(prescription.span)
    node = tree.find(prescription.span, ast.stmt) or tree.expression(prescription.span)
    call = node.value if isinstance(node, ast.Expr) else node
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
        if tree.source(call.func.value).rpartition(".")[2] == "init" and call.args:
            return [tree.replace(call, f"{tree.nn()}init.zeros_({tree.source(call.args[0])})")]
        if call.func.attr.endswith("_") and "bias" in tree.source(call.func.value) and isinstance(tree.parents[call], ast.Expr):
            return [tree.replace(call, f"{tree.source(call.func.value)}.zero_()")]
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and tree.source(node.targets[0]).endswith("bias.data"):
        return [tree.replace(node.value, f"{tree.torch()}zeros_like({tree.source(node.targets[0])})")]
    raise TreatmentRefused("it can't be told where the bias of the output layer gets its values; start it at zero, or at the logarithms of the classes' shares")


def scaled_head(context: Context, prescription: Prescription) -> list[Edit]:
    """The output layer starts at the targets' mean and with their standard deviation, in front of the optimizer."""
    tree, statement, bias = _bias(context)
    mean, std = float(prescription.arguments["mean"]), float(prescription.arguments["std"])
    lines = [f"with {tree.torch()}no_grad():", f"    {bias.removesuffix('.bias')}.weight.mul_({std:.4g})", f"    {bias}.fill_({mean:.4g})"]
    return [_once(tree, statement, lines)]


def _bias(context: Context) -> tuple[Tree, ast.stmt, str]:
    """(file, statement of the optimizer, source of the output layer's bias)."""
    tree = context.tree()
    head = next((r for r in reversed(context.layers) if r.op in HEADS and r.module), None)
    made = context.optimizer_call(tree)
    model = owner(made)
    if head is None or model is None:
        raise TreatmentRefused("the output layer or the optimizer's parameters were not found; set the bias of the output layer before training")
    if head.location is not None and head.location.file == tree.file and "bias=False" in tree.source(tree.call(head.location)):
        raise TreatmentRefused(f"the output layer {head.module} has no bias")
    return tree, tree.statement(made), f"{tree.source(model)}{attribute(head.module)}.bias"


def _once(tree: Tree, statement: ast.stmt, lines: list[str]) -> Edit:
    if tree.block(statement, lines) in tree.text:
        raise TreatmentRefused("the bias is set there already")
    return tree.before(statement, lines)
