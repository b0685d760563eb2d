"""Cures for residual branches: what a block reads from the stream is normalised first (pre-norm)."""
from __future__ import annotations

import ast

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, LayerRow, Prescription
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.tree import Tree


def normalise_branches(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """self.first(x) becomes self.first(layer_norm(x)) in the forward of each kind of block; what leaves the last block is normalised for the head, too."""
    edits = []
    for block in prescription.modules:
        row = _first_layer(context, block)
        if row is not None and row.location is not None:
            tree = context.tree(row.location.file)
            edits += _wrapped(tree, row)
    if not edits:
        raise TreatmentRefused("the first layer of the blocks was not found in a forward; normalise what each branch reads: x + f(layer_norm(x))")
    return list(dict.fromkeys(edits + _head(context, prescription.modules)))


def _head(context: Context, blocks: tuple[str, ...]) -> list[Edit]:
    """self.head(x) becomes self.head(layer_norm(x)): a stream that is a sum of branches grows with their number. Only where one linear layer follows."""
    last = max((r.order for r in context.layers for b in blocks if r.module.startswith(f"{b}.")), default=-1)
    after = [r for r in context.layers if r.order > last and r.weight]
    if len(after) != 1 or after[0].op != "linear" or after[0].location is None:
        return []
    row, tree = after[0], context.tree(after[0].location.file)
    name = row.module.rpartition(".")[2]
    calls = _calls(tree, row)
    if len(calls) != 1 or "." in row.module or not name.isidentifier():
        return []
    value = calls[0].args[0]
    text = tree.source(value)
    shape = f"{text}.shape[-1:]" if isinstance(value, ast.Name) else f"(self.{name}.in_features,)"
    return [tree.replace(value, f"{tree.functional()}layer_norm({text}, {shape})")]


def _first_layer(context: Context, block: str) -> LayerRow | None:
    inside = [r for r in context.layers if r.module.startswith(f"{block}.") and r.weight and (r.op == "linear" or r.op.startswith("conv"))]
    return min(inside, key=lambda r: r.order, default=None)


def _calls(tree: Tree, row: LayerRow) -> list[ast.Call]:
    """The calls of a layer with one argument, in the forward of the class that builds it."""
    node = tree.call(row.location)
    owner = next((n for n in tree.up(node) if isinstance(n, ast.ClassDef)), None)
    name = row.module.rpartition(".")[2]
    forward = next((n for n in owner.body if isinstance(n, ast.FunctionDef) and n.name == "forward"), None) if owner is not None else None
    return [n for n in (ast.walk(forward) if forward is not None else ())
            if isinstance(n, ast.Call) and tree.source(n.func) == f"self.{name}" and len(n.args) == 1]


def _wrapped(tree: Tree, row: LayerRow) -> list[Edit]:
    """The calls of the layer, their argument normalised."""
    edits = []
    for call in _calls(tree, row):
        if isinstance(call.args[0], ast.Name):
            value = call.args[0].id
            norm = f"layer_norm({value}, {value}.shape[-1:])" if row.op == "linear" else f"group_norm({value}, 1)"
            edits.append(tree.replace(call.args[0], f"{tree.functional()}{norm}"))
    return edits


PLANNERS = {"normalise-branches": normalise_branches}
