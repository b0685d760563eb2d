"""Cures in the mode of a model: training mode where it trains."""
from __future__ import annotations

import ast

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.treatments.calls import methods
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.tree import Tree

TELLING = ("parameters", "train", "eval", "state_dict")         # methods that only a model has


def train_mode(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """MODEL.train() in front of the loop over the batches, or in it where it evaluates as well."""
    tree = context.tree()
    backwards = list(methods(tree.root, "backward"))
    loops = [n for n in tree.up(backwards[0]) if isinstance(n, (ast.For, ast.While))] if len(backwards) == 1 else []
    if not loops:
        raise TreatmentRefused("the training loop was not found; call train() on the model in front of each epoch")
    function = tree.function(backwards[0])
    loops = [n for n in loops if tree.function(n) is function]
    name = model_name(tree, function or tree.root)
    inner = next((n for n in loops if _evaluates(tree, n)), None)
    if inner is None:
        return [tree.before(loops[0], [f"{name}.train()"])]
    return [tree.before(inner.body[0], [f"{name}.train()"])]


def model_name(tree: Tree, scope: ast.AST) -> str:
    """The one name that is called in `scope` and that something asks for its parameters, or sets its mode."""
    called = {tree.source(n.func) for n in ast.walk(scope) if isinstance(n, ast.Call) and isinstance(n.func, (ast.Name, ast.Attribute))}
    models = {tree.source(n.func.value) for n in methods(tree.root, *TELLING)} & called                  # type: ignore[attr-defined]
    if len(models) != 1:
        raise TreatmentRefused("it can't be told which name the model has in the training loop; call train() on it in front of each epoch")
    return models.pop()


def _evaluates(tree: Tree, loop: ast.For | ast.While) -> bool:
    """eval() is called in the loop, by itself or in a function of this file."""
    setters = {n.name for n in ast.walk(tree.root) if isinstance(n, ast.FunctionDef) and ".eval()" in tree.source(n)}
    calls = [n for n in ast.walk(loop) if isinstance(n, ast.Call)]
    return any(tree.source(c.func).rpartition(".")[2] in {"eval", *setters} for c in calls)


PLANNERS = {"train-mode": train_mode}
