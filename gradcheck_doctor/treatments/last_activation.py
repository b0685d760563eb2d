"""Taking the activation off the last layer only, where one expression makes those of the hidden layers, too."""
from __future__ import annotations

import ast

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit
from gradcheck_doctor.treatments.tree import Tree

LOOPS = (ast.For, ast.ListComp, ast.GeneratorExp)


def only_last(tree: Tree, node: ast.Call, builds: bool) -> list[Edit]:
    """Edits that leave the other uses of `node` as they are; [] where there are none as far as the source tells.

    Raises:
        TreatmentRefused: there are others, and it can't be told how to spare them.
    """
    if not builds:
        return _looped(tree, node) if _over_layers(around_loop(tree, node)) else []
    if around_loop(tree, node) is not None:
        return _without_end(tree, node)
    statement = tree.parents[node]
    owner = next((n for n in tree.up(node) if isinstance(n, ast.ClassDef)), None)
    if owner is None or not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return []
    name = tree.source(statement.targets[0])
    calls = [n for n in ast.walk(owner) if isinstance(n, ast.Call) and tree.source(n.func) == name and len(n.args) == 1]
    last = max(calls, key=lambda n: (n.end_lineno or 0, n.end_col_offset or 0), default=None)
    if last is None or len(calls) == 1 and around_loop(tree, last) is None:
        return []
    return _looped(tree, last) if around_loop(tree, last) is not None else [tree.replace(last, tree.source(last.args[0]))]


def around_loop(tree: Tree, node: ast.AST) -> ast.AST | None:
    """The loop around a node within its function."""
    for around in tree.up(node):
        if isinstance(around, LOOPS):
            return around
        if isinstance(around, (ast.FunctionDef, ast.ClassDef)):
            return None
    return None


def _over_layers(loop: ast.AST | None) -> bool:
    """What the loop runs over is called in it: layers, no batches."""
    target = loop.target if isinstance(loop, ast.For) else None
    names = {n.id for n in ast.walk(target) if isinstance(n, ast.Name)} if target is not None else set()
    return loop is not None and any(isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id in names for n in ast.walk(loop))


def _looped(tree: Tree, node: ast.Call) -> list[Edit]:
    """`for layer in self.layers: x = relu(layer(x))` spares the last layer, which is called behind the loop."""
    loop, statement = around_loop(tree, node), tree.statement(node)
    inner = node.args[0] if len(node.args) == 1 else node.func.value if isinstance(node.func, ast.Attribute) and not node.args else None
    if (not isinstance(loop, ast.For) or loop.body != [statement] or loop.orelse or not isinstance(loop.target, ast.Name) or not isinstance(inner, ast.Call)
            or not isinstance(statement, ast.Assign) or statement.value is not node or not isinstance(loop.iter, (ast.Name, ast.Attribute))):
        raise TreatmentRefused(f"{tree.source(node)!r} makes the activations of the hidden layers, too; leave it off behind the last layer only")
    layers, name = tree.source(loop.iter), loop.target.id
    start, text = tree.span(inner).column - 1, tree.source(inner)
    if inner.lineno != inner.end_lineno or not isinstance(inner.func, ast.Name) or inner.func.id != name or any(
            isinstance(n, ast.Name) and n.id == name for a in (*inner.args, *inner.keywords) for n in ast.walk(a)):
        raise TreatmentRefused(f"apply {layers}[-1] behind the loop, without the activation")
    called = text[tree.span(inner.func).end_column - 1 - start:]                                     # type: ignore[operator]
    target = tree.source(statement.targets[0])
    return [tree.replace(loop.iter, f"{layers}[:-1]"), tree.after(loop, [f"{target} = {layers}[-1]{called}"])]


def _without_end(tree: Tree, node: ast.Call) -> list[Edit]:
    """nn.Sequential(*layers) becomes nn.Sequential(*layers[:-1]) where a loop put the activation last into `layers`, and nothing came after it."""
    function, loop = tree.function(node), around_loop(tree, node)
    grown = _grown(tree, node) if isinstance(loop, ast.For) and tree.statement(node) is loop.body[-1] else ""
    around = list(ast.walk(function or tree.root))
    later = [n for n in around if isinstance(n, ast.stmt) and n.lineno > (loop.end_lineno or 0) and grows(tree, n) == grown] if isinstance(loop, ast.For) else []
    stars = [n for n in around if isinstance(n, ast.Starred) and tree.source(n.value) == grown and isinstance(tree.parents[n], ast.Call)]
    if not grown or later or len(stars) != 1:
        raise TreatmentRefused(f"{tree.source(node)!r} makes the activations of the hidden layers, too; leave it off behind the last layer only")
    return [tree.replace(stars[0].value, f"{grown}[:-1]")]


def _grown(tree: Tree, node: ast.Call) -> str:
    """layers of layers.append(nn.ReLU()), layers += [..., nn.ReLU()], where the node is the last to go in."""
    siblings, statement = tree.siblings(node), tree.statement(node)
    return grows(tree, statement) if siblings and siblings[-1] is node else ""


def grows(tree: Tree, statement: ast.stmt) -> str:
    """layers of `layers.append(...)`, `layers += [...]`."""
    if isinstance(statement, ast.AugAssign):
        return tree.source(statement.target)
    call = statement.value if isinstance(statement, ast.Expr) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in ("append", "extend"):
        return tree.source(call.func.value)
    return ""
