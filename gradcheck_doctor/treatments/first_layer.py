"""A normalisation in front of the first layer only, where a loop builds all of them."""
from __future__ import annotations

import ast

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit
from gradcheck_doctor.treatments.last_activation import around_loop, grows
from gradcheck_doctor.treatments.tree import Tree


def first_width(tree: Tree, loop: ast.AST, width: ast.expr) -> str:
    """What `width` is on the first pass of `loop`, as it can be written in front of it.

    Raises:
        TreatmentRefused: it can't be told.
    """
    if isinstance(width, ast.IfExp):
        return tree.source(width.body if _first(tree, width.test) else width.orelse)
    pairs = [(loop.target, loop.iter)] if isinstance(loop, ast.For) else [(g.target, g.iter) for g in getattr(loop, "generators", ())]
    targets = {n.id for target, _ in pairs for n in ast.walk(target) if isinstance(n, ast.Name)}
    if not targets & {n.id for n in ast.walk(width) if isinstance(n, ast.Name)}:
        return tree.source(width)
    target, values = pairs[0]
    counted = isinstance(values, ast.Call) and tree.source(values.func) == "range" and len(values.args) == 1
    if counted and isinstance(width, ast.Subscript) and isinstance(target, ast.Name) and tree.source(width.slice) == target.id:
        return f"{tree.source(width.value)}[0]"
    if isinstance(values, ast.Call) and tree.source(values.func) == "zip" and isinstance(target, ast.Tuple) and len(target.elts) == len(values.args):
        given = next((v for t, v in zip(target.elts, values.args, strict=True) if tree.source(t) == tree.source(width)), None)
        whole = given.value if isinstance(given, ast.Subscript) and tree.source(given.slice) == ":-1" else given
        if isinstance(whole, (ast.Name, ast.Attribute)):
            return f"{tree.source(whole)}[0]"
    raise TreatmentRefused(f"it can't be told what {tree.source(width)!r} is for the first layer; put a normalisation in front of that")


def _first(tree: Tree, test: ast.expr) -> bool:
    """The test holds on the first pass: `i == 0`, `not layers`.

    Raises:
        TreatmentRefused: it can't be told.
    """
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return True
    if isinstance(test, (ast.Name, ast.Attribute)):
        return False
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and tree.source(test.comparators[0]) == "0":
        if isinstance(test.ops[0], ast.Eq):
            return True
        if isinstance(test.ops[0], (ast.Gt, ast.NotEq)):
            return False
    raise TreatmentRefused(f"it can't be told whether {tree.source(test)!r} holds for the first layer; put a normalisation in front of that")


def in_front(tree: Tree, node: ast.Call, norm: str) -> list[Edit]:
    """`norm` goes into the list of a Sequential in front of the loop, or becomes a module of its own that forward applies to its input.

    Raises:
        TreatmentRefused: there is neither.
    """
    loop, function = around_loop(tree, node), tree.function(node)
    grown = grows(tree, tree.statement(node))
    starred = [n for n in ast.walk(function or tree.root) if isinstance(n, ast.Starred) and tree.source(n.value) == grown
               and isinstance(call := tree.parents[n], ast.Call) and tree.source(call.func).rpartition(".")[2] == "Sequential"]
    if isinstance(loop, ast.For) and grown and starred:
        return [tree.before(loop, [f"{grown}.append({norm})"])]
    owner = next((n for n in tree.up(node) if isinstance(n, ast.ClassDef)), None)
    forward = next((n for n in owner.body if isinstance(n, ast.FunctionDef) and n.name == "forward"), None) if owner is not None else None
    if loop is None or forward is None or function is None or function.name != "__init__" or len(forward.args.args) != 2 or "input_norm" in tree.text:
        raise TreatmentRefused(f"a loop builds all layers; put {norm} in front of the first one")
    value, body = forward.args.args[1].arg, forward.body
    start = body[1] if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) and len(body) > 1 else body[0]
    return [tree.before(tree.statement(loop), [f"self.input_norm = {norm}"]), tree.before(start, [f"{value} = self.input_norm({value})"])]
