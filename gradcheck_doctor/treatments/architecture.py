"""Cures by normalisation: behind hidden layers, in front of the first one, without batch statistics where the batch is small."""
from __future__ import annotations

import ast

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, LayerRow, Prescription
from gradcheck_doctor.treatments.beside import put
from gradcheck_doctor.treatments.calls import argument
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.draws import is_own_layer
from gradcheck_doctor.treatments.first_layer import first_width, in_front
from gradcheck_doctor.treatments.last_activation import around_loop
from gradcheck_doctor.treatments.tree import Tree

ACTIVATIONS = ("relu", "leaky_relu", "elu", "selu", "gelu", "silu", "tanh", "sigmoid", "softplus", "softsign", "hardtanh", "relu6", "prelu", "rrelu", "softmax")
PER_GROUP = 16         # channels a group, Wu and He 2018, table 3


def _is_constructor(tree: Tree, node: ast.Call) -> bool:
    return tree.source(node.func).rpartition(".")[2][:1].isupper()


def insert_norm(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """BatchNorm (or LayerNorm) behind each hidden layer of the run."""
    kind = str(prescription.arguments.get("norm", "batch"))
    rows = _hidden(context, prescription.modules)
    heads = {r.location for r in context.layers if r.weight and r.location is not None}
    last = next((r.location for r in reversed(context.layers) if r.weight and r.location is not None), None)
    edits: list[Edit] = []
    for row in rows:
        span = row.location
        if span is None or span == last and len(heads) > 1:
            continue
        tree = context.tree(span.file)
        node = tree.call(span)
        if is_own_layer(tree, node) is not None:
            continue                                        # its own arguments say nothing certain about its width
        width = _argument(tree, node, "out_features" if row.op == "linear" else "out_channels", 1)
        norm = _norm(tree, row.op, kind, tree.source(width))
        edits += put(tree, node, behind=norm)
    if not edits:
        raise TreatmentRefused("no hidden layer was found to normalise")
    return list(dict.fromkeys(edits))


def _hidden(context: Context, modules: tuple[str, ...]) -> list[LayerRow]:
    """Linear layers and convolutions of these modules; an activation stands for the layer in front of it."""
    layers = [r for r in context.layers if r.weight and r.location is not None and (r.op == "linear" or r.op.startswith("conv"))]
    found = [r for r in layers if r.module in modules]
    for row in context.rows(modules):
        front = max((r for r in layers if r.order < row.order), key=lambda r: r.order, default=None) if row.op in ACTIVATIONS else None
        if front is not None and front not in found:
            found.append(front)
    return found


def input_norm(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """BatchNorm in front of the layer that the input meets first; of the first one only where a loop builds all of them."""
    if finding.location is None:
        raise TreatmentRefused("the first layer was not found")
    tree = context.tree(finding.location.file)
    node = tree.call(finding.location)
    width = _argument(tree, node, "in_features" if finding.op == "linear" else "in_channels", 0)
    loop = around_loop(tree, node)
    if loop is not None:
        return in_front(tree, node, _norm(tree, finding.op, "batch", first_width(tree, loop, width)))
    return put(tree, node, front=_norm(tree, finding.op, "batch", tree.source(width)))


def _norm(tree: Tree, op: str, kind: str, width: str) -> str:
    """BatchNorm; LayerNorm or GroupNorm where the batch holds too few values for its statistics."""
    if op == "linear" and kind in ("layer", "group"):
        return f"{tree.nn()}LayerNorm({width})"
    if kind in ("layer", "group"):
        return f"{tree.nn()}GroupNorm({_groups(width) if kind == 'group' else 1}, {width})"
    dimensions = {"linear": "1d", "conv1d": "1d", "conv2d": "2d", "conv3d": "3d"}.get(op, "1d")
    return f"{tree.nn()}BatchNorm{dimensions}({width})"


def _groups(width: str) -> int:
    """Groups of about 16 channels, a divisor of a literal width; 1 for a width that is computed.

    >>> _groups("64"), _groups("24"), _groups("width")
    (4, 1, 1)
    """
    channels = int(width) if width.isdigit() else 1
    return next(g for g in range(max(1, channels // PER_GROUP), 0, -1) if channels % g == 0)


def _argument(tree: Tree, node: ast.Call, name: str, position: int) -> ast.expr:
    found = argument(node, name, None if any(isinstance(a, ast.Starred) for a in node.args) else position)
    if found is None or not _is_constructor(tree, node):
        raise TreatmentRefused(f"the layer's {name} can't be read from {tree.source(node)!r}")
    return found


def replace_norm(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """GroupNorm in place of BatchNorm."""
    edits = []
    for span in context.built(prescription.modules, ("batch_norm",)):
        tree = context.tree(span.file)
        node = tree.call(span)
        edits.append(tree.replace(node, f"{tree.nn()}GroupNorm(1, {tree.source(_argument(tree, node, 'num_features', 0))})"))
    if not edits:
        raise TreatmentRefused("the BatchNorm layers were not found")
    return edits


PLANNERS = {"insert-norm": insert_norm, "input-norm": input_norm, "replace-norm": replace_norm}
