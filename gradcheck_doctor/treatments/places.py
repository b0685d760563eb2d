"""Where lines that act on a whole model go: the end of __init__, in front of a factory's return, behind the construction, in front of the optimizer."""
from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit
from gradcheck_doctor.treatments.calls import owner
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.tree import Tree

Body = Callable[[str], list[str]]
Place = tuple[str, ast.stmt, str]                 # before | after | return, a statement, the model's name there
MOVES = ("to", "cuda", "cpu", "double", "float", "half", "bfloat16", "train", "eval", "apply", "requires_grad_", "compile")
CONTAINERS = ("append", "extend", "insert", "add_module", "add", "update")


def insert(context: Context, tree: Tree, nodes: Sequence[ast.expr], body: Body, *, late: bool = False) -> list[Edit]:
    """The lines `body(model)` once, where all of `nodes` (the constructors they act on) have been called.

    Args:
        late: something initialises the model after it was built, so the lines have to come after that.

    Raises:
        TreatmentRefused: there is no such place, or the lines stand there already.
    """
    early = list(_places(tree, _outermost(tree, nodes)))
    places = [*_optimizer(context, tree), *early] if late else [*early, *_optimizer(context, tree)]
    if not places:
        raise TreatmentRefused("no safe place was found; put this behind the construction of the model:\n" + "\n".join(body("model")))
    side, statement, name = places[0]
    lines = body(name)
    if tree.block(statement, lines) in tree.text:
        raise TreatmentRefused("these lines stand there already; something after them undoes what they do")
    if side == "return":
        value = statement.value                                                        # type: ignore[attr-defined]
        text = [f"model = {tree.source(value)}", *lines, "return model"]
        return [tree.replace(statement, tree.block(statement, text).removeprefix(tree.indent(statement)).rstrip("\r\n"))]
    return [tree.before(statement, lines) if side == "before" else tree.after(statement, lines)]


def _outermost(tree: Tree, nodes: Sequence[ast.expr]) -> list[ast.expr]:
    """The nodes in the function that builds all the others: Net.__init__ calls Block, so a loop over Net covers Block."""
    homes = {tree.function(n): n for n in nodes}
    for home in homes:
        reached = _reached(tree, home) if home is not None else set(homes)
        if all(other is home or other in reached for other in homes):
            return [n for n in nodes if tree.function(n) is home]
    return []


def _reached(tree: Tree, home: ast.FunctionDef) -> set[ast.FunctionDef | None]:
    """Functions whose code runs when `home` runs, as far as names tell: classes that it builds and functions that it calls."""
    owners: dict[str, list[ast.FunctionDef]] = {}
    for node in ast.walk(tree.root):
        if isinstance(node, ast.FunctionDef):
            owner = tree.parents.get(node)
            owners.setdefault(owner.name if isinstance(owner, ast.ClassDef) else node.name, []).append(node)
            if isinstance(owner, ast.ClassDef) and node.name not in ("__init__", "forward"):
                owners.setdefault(node.name, []).append(node)
    found: set[ast.FunctionDef | None] = set()
    stack = [home]
    while stack:
        for node in ast.walk(stack.pop()):
            name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
            for function in owners.get(name, []):
                if function not in found:
                    found.add(function)
                    stack.append(function)
    return found


def _places(tree: Tree, nodes: Sequence[ast.expr]) -> Iterator[Place]:
    """Places in the function (or at module level) where the nodes stand, the best first."""
    for node in nodes[-1:]:
        function = tree.function(node)
        if function is not None and function.name == "__init__":
            final = function.body[-1]
            yield ("before", final, "self") if isinstance(final, ast.Return) else ("after", final, "self")
        if function is not None and function.name not in ("__init__", "forward"):
            yield from _returned(tree, function, node)
        yield from _assigned(tree, function, node)


def _returned(tree: Tree, function: ast.FunctionDef, node: ast.expr) -> Iterator[Place]:
    """In front of a factory's only return, where it returns what was built."""
    returns = [n for n in ast.walk(function) if isinstance(n, ast.Return) and n.value is not None and tree.function(n) is function]
    if len(returns) != 1 or returns[0] is not function.body[-1]:
        return
    final, value = returns[0], returns[0].value
    if isinstance(value, ast.Name):
        made = [n for n in ast.walk(function) if isinstance(n, ast.Assign) and any(isinstance(t, ast.Name) and t.id == value.id for t in n.targets)]
        if made and all(is_module(tree, n.value) for n in made):
            yield ("before", final, value.id)
    elif value is not None and is_module(tree, value):
        yield ("return", final, "model")


def _assigned(tree: Tree, function: ast.FunctionDef | None, node: ast.expr) -> Iterator[Place]:
    """Behind `model = Sequential(...)` that holds the node, or that is made later of the list it was put into."""
    statement = tree.statement(node)
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], (ast.Name, ast.Attribute)) and is_module(tree, statement.value):
        yield ("after", statement, tree.source(statement.targets[0]))
        return
    held = _list(tree, node)
    for later in ast.walk(function or tree.root):
        if (held and isinstance(later, ast.Assign) and tree.function(later) is function and later.lineno > statement.lineno and is_module(tree, later.value)
                and isinstance(later.targets[0], ast.Name) and any(isinstance(n, ast.Name) and n.id == held for n in ast.walk(later.value))):
            yield ("after", later, later.targets[0].id)


def _list(tree: Tree, node: ast.expr) -> str:
    """The list that a layer is put into: layers of `layers.append(...)`, `layers += [...]`, `layers = [...]`."""
    statement = tree.statement(node)
    target: ast.AST | None = None
    if isinstance(statement, ast.Assign):
        target = statement.targets[0]
    elif isinstance(statement, ast.AugAssign):
        target = statement.target
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call) and isinstance(statement.value.func, ast.Attribute):
        target = statement.value.func.value if statement.value.func.attr in CONTAINERS else None
    return target.id if isinstance(target, ast.Name) else ""


def is_module(tree: Tree, node: ast.AST) -> bool:
    """The expression makes a module: a call of a class, `.to(device)` and the like behind it."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MOVES:
        node = node.args[0] if node.func.attr == "compile" and node.args else node.func.value
    return isinstance(node, ast.Call) and tree.source(node.func).rpartition(".")[2][:1].isupper() and ".parameters()" not in tree.source(node)


def _optimizer(context: Context, tree: Tree) -> Iterator[Place]:
    """In front of the construction of an optimizer over MODEL.parameters()."""
    try:
        made = context.optimizer_call(tree)
    except TreatmentRefused:
        return
    model = owner(made)
    if model is not None:
        yield ("before", tree.statement(made), tree.source(model))
