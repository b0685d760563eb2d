"""Cures for residual branches: what a block reads from the stream is normalised first (pre-norm)."""
from __future__ import annotations

import ast

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, LayerRow, Prescription
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.tree import Tree


def normalise_branches(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """self.first(x) becomes self.first(layer_norm(x)) in the forward of each kind of block."""
    edits = []
    for block in prescription.modules:
        row = _first_layer(context, block)
        if row is not None and row.location is not None:
            tree = context.tree(row.location.file)
            edits += _wrapped(tree, row)
    if not edits:
        raise TreatmentRefused("the first layer of the blocks was not found in a forward; normalise what each branch reads: x + f(layer_norm(x))")
    return list(dict.fromkeys(edits))


def _first_layer(context: Context, block: str) -> LayerRow | None:
    inside = [r for r in context.layers if r.module.startswith(f"{block}.") and r.weight and (r.op == "linear" or r.op.startswith("conv"))]
    return min(inside, key=lambda r: r.order, default=None)


def _wrapped(tree: Tree, row: LayerRow) -> list[Edit]:
    """The calls of the layer in forward, their argument normalised."""
    node = tree.call(row.location)
    owner = next((n for n in tree.up(node) if isinstance(n, ast.ClassDef)), None)
    name = row.module.rpartition(".")[2]
    forward = next((n for n in owner.body if isinstance(n, ast.FunctionDef) and n.name == "forward"), None) if owner is not None else None
    edits = []
    for call in ast.walk(forward) if forward is not None else ():
        if isinstance(call, ast.Call) and tree.source(call.func) == f"self.{name}" and len(call.args) == 1 and isinstance(call.args[0], ast.Name):
            value = call.args[0].id
            norm = f"layer_norm({value}, {value}.shape[-1:])" if row.op == "linear" else f"group_norm({value}, 1)"
            edits.append(tree.replace(call.args[0], f"{tree.functional()}{norm}"))
    return edits


PLANNERS = {"normalise-branches": normalise_branches}
