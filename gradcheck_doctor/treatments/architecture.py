"""Cures in the model's definition: activations, normalisation, output, loss."""
from __future__ import annotations

import ast

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.tree import Tree

MODULE = {"relu": "ReLU()", "leaky_relu": "LeakyReLU(0.01)", "elu": "ELU()", "selu": "SELU()", "gelu": "GELU()", "prelu": "PReLU()"}
CALL = {"relu": "torch.relu({})", "leaky_relu": "torch.nn.functional.leaky_relu({}, 0.01)", "elu": "torch.nn.functional.elu({})", "selu": "torch.selu({})",
        "gelu": "torch.nn.functional.gelu({})"}

def _is_constructor(tree: Tree, node: ast.Call) -> bool:
    """nn.ReLU() rather than F.relu(x): class names start with a capital."""
    return tree.source(node.func).rpartition(".")[2][:1].isupper()


def _spans(context: Context, prescription: Prescription) -> list[Span]:
    spans = context.built(prescription.modules)
    if prescription.span is not None and prescription.span not in spans:
        spans = [prescription.span] if not prescription.modules or prescription.modules == ("",) else [prescription.span, *spans]
    return spans


def replace_activation(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """Another activation in place of each expression that built or called the old one."""
    to = str(prescription.arguments.get("to", "relu"))
    old = finding.op or None
    edits: list[Edit] = []
    for row in context.rows(finding.modules or prescription.modules):
        if row.location is None or old is not None and row.op != old:
            continue
        tree = context.tree(row.location.file)
        node = tree.call(row.location)
        if _is_constructor(tree, node):
            if "getattr" in tree.source(node.func):
                raise TreatmentRefused("the activation comes from a configuration; change it there")
            edits.append(tree.replace(node, tree.nn() + MODULE[to]))
        else:
            edits.append(tree.replace(node, CALL[to].format(_operand(tree, node))))
    if not edits:
        raise TreatmentRefused("the expression that makes the activation was not found")
    return list(dict.fromkeys(edits))


def _operand(tree: Tree, node: ast.Call) -> str:
    """x of F.relu(x) or of x.relu()."""
    if node.args and not (isinstance(node.func, ast.Attribute) and _is_value(tree, node.func.value)):
        return tree.source(node.args[0])
    if isinstance(node.func, ast.Attribute):
        return tree.source(node.func.value)
    raise TreatmentRefused("the operand of the call was not found")


def _is_value(tree: Tree, node: ast.expr) -> bool:
    return tree.source(node) not in ("torch", "F", "nn.functional", "torch.nn.functional", "functional", "torch.special")


def remove_call(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """Take an activation out: from a Sequential, from an attribute (nn.Identity), from an expression."""
    edits: list[Edit] = []
    spans = [prescription.span] if prescription.span is not None else _spans(context, prescription)
    for span in spans:
        tree = context.tree(span.file)
        node = tree.call(span)
        if not _is_constructor(tree, node):
            edits.append(tree.replace(node, _operand(tree, node)))
            continue
        edits.append(_without_element(tree, node) or tree.replace(node, f"{tree.nn()}Identity()"))
    if not edits:
        raise TreatmentRefused("the expression was not found")
    return edits


def _without_element(tree: Tree, node: ast.Call) -> Edit | None:
    """Remove an element of a call's arguments or of a list, with the comma in front of it."""
    siblings = tree.siblings(node)
    place = siblings.index(node) if node in siblings else 0
    if place == 0:
        return None
    end, here = tree.span(siblings[place - 1]), tree.span(node)
    return Edit(Span(here.file, end.end_line or end.line, end.end_column or 1, here.end_line, here.end_column), "")


def insert_norm(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """BatchNorm (or LayerNorm) behind each hidden layer of the run."""
    kind = str(prescription.arguments.get("norm", "batch"))
    rows = [r for r in context.rows(prescription.modules) if r.weight and r.location is not None and (r.op == "linear" or r.op.startswith("conv"))]
    heads = {r.location for r in context.layers if r.weight and r.location is not None}
    last = next((r.location for r in reversed(context.layers) if r.weight and r.location is not None), None)
    edits: list[Edit] = []
    for row in rows:
        span = row.location
        if span is None or span == last and len(heads) > 1:
            continue
        tree = context.tree(span.file)
        node = tree.call(span)
        width = _argument(tree, node, "out_features" if row.op == "linear" else "out_channels", 1)
        norm = _norm(tree, row.op, kind, width)
        edits.append(_beside(tree, node, behind=norm))
    if not edits:
        raise TreatmentRefused("no hidden layer was found to normalise")
    return list(dict.fromkeys(edits))


def input_norm(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """BatchNorm in front of the layer that the input meets first."""
    if finding.location is None:
        raise TreatmentRefused("the first layer was not found")
    tree = context.tree(finding.location.file)
    node = tree.call(finding.location)
    width = _argument(tree, node, "in_features" if finding.op == "linear" else "in_channels", 0)
    return [_beside(tree, node, front=_norm(tree, finding.op, "batch", width))]


def _norm(tree: Tree, op: str, kind: str, width: str) -> str:
    dimensions = {"linear": "1d", "conv1d": "1d", "conv2d": "2d", "conv3d": "3d"}.get(op, "1d")
    if kind == "layer" and op == "linear":
        return f"{tree.nn()}LayerNorm({width})"
    return f"{tree.nn()}BatchNorm{dimensions}({width})"


def _argument(tree: Tree, node: ast.Call, name: str, position: int) -> str:
    found = next((k.value for k in node.keywords if k.arg == name), None)
    if found is None and len(node.args) > position and not any(isinstance(a, ast.Starred) for a in node.args):
        found = node.args[position]
    if found is None or not _is_constructor(tree, node):
        raise TreatmentRefused(f"the layer's {name} can't be read from {tree.source(node)!r}")
    return tree.source(found)


def _beside(tree: Tree, node: ast.Call, front: str = "", behind: str = "") -> Edit:
    """Another module next to one: as a neighbour in a list or Sequential, else in a Sequential of its own."""
    inside = ", ".join(x for x in (front, tree.source(node), behind) if x)
    parent = tree.parents[node]
    listed = isinstance(parent, (ast.List, ast.Tuple)) and not isinstance(tree.parents.get(parent), ast.Assign) or (
        isinstance(parent, ast.Call) and tree.source(parent.func).rpartition(".")[2] == "Sequential")
    if isinstance(parent, ast.List) and isinstance(tree.parents.get(parent), ast.Assign):
        listed = "Sequential" in tree.text and "ModuleList" not in tree.source(tree.parents[parent])
    return tree.replace(node, inside if listed else f"{tree.nn()}Sequential({inside})")


def add_activation(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The activation around the input of each layer that follows another one directly."""
    unused = str(prescription.arguments.get("unused", "")).rpartition(".")[2]
    tree = context.tree(finding.location.file if finding.location is not None else None)
    names = {m.rpartition(".")[2] for m in prescription.modules}
    edits = []
    for node in ast.walk(tree.root):
        if (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names and len(node.args) == 1
                and tree.source(node.func.value) == "self"):
            wrapper = f"self.{unused}" if unused else "torch.relu"
            edits.append(tree.replace(node.args[0], f"{wrapper}({tree.source(node.args[0])})"))
    if not edits:
        raise TreatmentRefused("the calls of the layers were not found in forward")
    return edits


def straight_through(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """round(z) passes the gradient as if it were not there: z + (round(z) - z).detach()."""
    if prescription.span is None:
        raise TreatmentRefused("the call was not found")
    tree = context.tree(prescription.span.file)
    node = tree.call(prescription.span)
    operand = _operand(tree, node)
    if not operand.isidentifier():
        raise TreatmentRefused(f"give {operand!r} a name first, then write z + ({prescription.arguments.get('op')}(z) - z).detach()")
    return [tree.replace(node, f"({operand} + ({tree.source(node)} - {operand}).detach())")]


def replace_norm(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """GroupNorm in place of BatchNorm."""
    edits = []
    for span in context.built(prescription.modules, ("batch_norm",)):
        tree = context.tree(span.file)
        node = tree.call(span)
        edits.append(tree.replace(node, f"{tree.nn()}GroupNorm(1, {_argument(tree, node, 'num_features', 0)})"))
    if not edits:
        raise TreatmentRefused("the BatchNorm layers were not found")
    return edits


PLANNERS = {"replace-activation": replace_activation, "remove-output-activation": remove_call, "remove-activation": remove_call,
            "insert-norm": insert_norm, "input-norm": input_norm, "add-activation": add_activation, "straight-through": straight_through,
            "replace-norm": replace_norm}
