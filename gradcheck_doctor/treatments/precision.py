"""Cures of half precision: bfloat16 in autocast, weights in float32."""
from __future__ import annotations

import ast
from collections.abc import Iterator

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.treatments.calls import argument
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.tree import Tree

HALVES = ("bfloat16", "float16", "half")
MIXED = {"bf16-true": "bf16-mixed", "16-true": "16-mixed"}         # of a Lightning Trainer


def autocast_bf16(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """float16 in autocast becomes bfloat16."""
    tree = context.tree()
    edits = [tree.replace(n, "torch.bfloat16") for n in _named(tree, "float16", "half") if _in_autocast(tree, n)]
    if not edits:
        raise TreatmentRefused("torch.float16 does not stand in an autocast call")
    return edits


def float32_weights(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """What makes weights (and the data that meets them) half precision makes them float32; a Lightning Trainer gets its mixed precision."""
    tree = context.tree()
    edits = [tree.replace(n, "torch.float32") for n in _named(tree, *HALVES) if not _in_autocast(tree, n)]
    for node in ast.walk(tree.root):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("bfloat16", "half") and not node.args and not node.keywords:
            edits.append(tree.replace(node, f"{tree.source(node.func.value)}.float()"))
        elif tree.source(node.func).endswith("add_argument") and _text(default := argument(node, "default")) in HALVES and default is not None:
            edits.append(tree.replace(default, '"float32"'))
        elif (given := argument(node, "precision")) is not None and _text(given) in MIXED:
            edits.append(tree.replace(given, f'"{MIXED[_text(given)]}"'))
    if not edits:
        raise TreatmentRefused("it can't be told what makes the weights half precision; keep them in float32 and compute under torch.autocast")
    return edits


def _named(tree: Tree, *names: str) -> Iterator[ast.Attribute]:
    return (n for n in ast.walk(tree.root) if isinstance(n, ast.Attribute) and tree.source(n) in [f"torch.{name}" for name in names])


def _text(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _in_autocast(tree: Tree, node: ast.AST) -> bool:
    return any(isinstance(n, ast.Call) and "autocast" in tree.source(n.func) for n in tree.up(node))


PLANNERS = {"autocast-bf16": autocast_bf16, "float32-weights": float32_weights}
