"""Settings that choose an activation: "tanh" in a dictionary, an argparse default, a parameter. Changed only where the flow is certain."""
from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit
from gradcheck_doctor.treatments.flows import DEPTH, behind, origins
from gradcheck_doctor.treatments.tree import Tree


@dataclass(frozen=True)
class Choice:
    """Something picks the constructor by a string: the expression of that string, and what can be picked by which string (all, if None)."""

    setting: ast.expr
    options: dict[str, str] | None


def choice(tree: Tree, node: ast.Call) -> Choice | None:
    """The choice that the construction `node` comes from; None when it stands there for itself."""
    function = node.func
    if isinstance(function, ast.Name):
        function = _assigned(tree, node, function.id) or function
    if isinstance(function, ast.Call) and tree.source(function.func) == "getattr" and len(function.args) > 1:
        return Choice(function.args[1], None)
    if isinstance(function, ast.Subscript):
        table = _dictionary(tree, function.value)
        return Choice(function.slice, _options(tree, table) if table is not None else {})
    around = tree.parents.get(node)
    picked = _picked(tree, around) if isinstance(around, ast.Dict) else None
    if isinstance(around, ast.Dict) and picked is not None:
        return Choice(picked, _options(tree, around))
    return _branch(tree, node)


def function(tree: Tree, node: ast.Call) -> Choice | ast.expr | None:
    """What decides which function `self.act(x)` calls: a choice, or the one expression that names it; None where that can't be told, or is the call itself."""
    around = next((n for n in tree.up(node) if isinstance(n, (ast.Lambda, ast.stmt))), None)
    table = tree.parents[around] if isinstance(around, ast.Lambda) else None
    if isinstance(table, ast.Dict):
        picked = _picked(tree, table)
        return Choice(picked, _options(tree, table)) if picked is not None else None
    named = node.func
    for _ in range(DEPTH):
        if isinstance(named, ast.Subscript) and (entries := _dictionary(tree, named.value)) is not None:
            return Choice(named.slice, _options(tree, entries))
        if isinstance(named, ast.Call) and tree.source(named.func) == "getattr" and len(named.args) > 1 and tree.source(named.args[0]) != "self":
            return Choice(named.args[1], None)
        steps = list(behind(tree, named))
        if len(steps) != 1:
            return named if not steps and named is not node.func else None
        named = steps[0]
    return None


def origin(tree: Tree, node: ast.Call) -> ast.expr | None:
    """nn.Tanh of `def f(act=nn.Tanh): ... act()`; None where the constructor is named in the call itself.

    Raises:
        TreatmentRefused: the name is a variable, and it can't be told for certain what it holds.
    """
    found = origins(tree, node.func)
    if found == [node.func]:
        return None
    if len(found) == 1 and isinstance(found[0], (ast.Name, ast.Attribute)) and tree.source(found[0]).rpartition(".")[2][:1].isupper():
        return found[0]
    raise TreatmentRefused(f"it can't be told what {tree.source(node.func)!r} is in {tree.source(node)!r}; change it where it is given")


def changed(tree: Tree, found: Choice, to: str, *also: str) -> Edit:
    """Let the setting name the class `to` (ReLU), or whatever else is called so (relu).

    Raises:
        TreatmentRefused: there is no name for it, or it can't be told for certain where the setting gets its value.
    """
    names = [to] if found.options is None else [key for key, value in found.options.items() if value in (to, *also)]
    if not names:
        raise TreatmentRefused(f"{tree.source(found.setting)!r} chooses the activation and has no name for {to}; add it to the choices and set it there")
    sources = origins(tree, found.setting)
    if len(sources) == 1 and isinstance(sources[0], ast.Constant) and isinstance(sources[0].value, str):
        quote = tree.source(sources[0])[-1]
        return tree.replace(sources[0], f"{quote}{names[0]}{quote}")
    raise TreatmentRefused(f"the activation comes from a configuration: it can't be told where {tree.source(found.setting)!r} gets its value; "
                           f"set it to {names[0]!r} there")


def _options(tree: Tree, table: ast.Dict) -> dict[str, str]:
    """Class or function by key: {"relu": nn.ReLU, "tanh": nn.Tanh(), "elu": F.elu, "softmax": lambda x: x.softmax(1)}."""
    found = {}
    for key, value in zip(table.keys, table.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            value = value.body if isinstance(value, ast.Lambda) else value
            made = value.func if isinstance(value, ast.Call) else value
            found[key.value] = tree.source(made).rpartition(".")[2]
    return found


def _picked(tree: Tree, table: ast.Dict) -> ast.expr | None:
    """The index of {...}[name], or of the name that the dictionary is given; None for a dictionary that is used as a whole."""
    parent = tree.parents.get(table)
    if isinstance(parent, ast.Subscript) and parent.value is table:
        return parent.slice
    if not isinstance(parent, ast.Assign):
        return None
    name = tree.source(parent.targets[0])
    uses = [n for n in ast.walk(tree.root) if isinstance(n, ast.Subscript) and tree.source(n.value) == name and isinstance(n.ctx, ast.Load)]
    if len(uses) > 1:
        raise TreatmentRefused(f"several settings choose from {name}; change the one that is meant")
    return uses[0].slice if uses else None


def _dictionary(tree: Tree, node: ast.expr) -> ast.Dict | None:
    if isinstance(node, ast.Dict):
        return node
    found = [n.value for n in ast.walk(tree.root) if isinstance(n, ast.Assign) and any(tree.source(t) == tree.source(node) for t in n.targets)]
    return found[0] if len(found) == 1 and isinstance(found[0], ast.Dict) else None


def _branch(tree: Tree, node: ast.Call) -> Choice | None:
    """`if name == "tanh": act = nn.Tanh()`: the tests of the whole chain."""
    inner: ast.AST = node
    for around in tree.up(node):
        if isinstance(around, (ast.FunctionDef, ast.ClassDef)):
            return None
        if isinstance(around, (ast.If, ast.IfExp)) and inner is not around.test and (setting := _tested(around.test)) is not None:
            top = around
            while isinstance(parent := tree.parents[top], (ast.If, ast.IfExp)) and top in (parent.orelse if isinstance(parent, ast.If) else [parent.orelse]):
                top = parent
            return Choice(setting, dict(_chain(tree, top)))
        inner = around
    return None


def _tested(test: ast.expr) -> ast.expr | None:
    """x of `x == "tanh"`."""
    if (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq) and isinstance(test.comparators[0], ast.Constant)
            and isinstance(test.comparators[0].value, str)):
        return test.left
    return None


def _chain(tree: Tree, node: ast.AST) -> Iterator[tuple[str, str]]:
    """(string, class) of each test of an if / elif chain."""
    while isinstance(node, (ast.If, ast.IfExp)):
        body = node.body if isinstance(node.body, list) else [node.body]
        made = [n for b in body for n in ast.walk(b) if isinstance(n, ast.Call) and tree.source(n.func).rpartition(".")[2][:1].isupper()]
        made_names = [tree.source(n.func).rpartition(".")[2] for n in made]
        references = [n.attr for b in body for n in ast.walk(b) if isinstance(n, ast.Attribute) and n.attr[:1].isupper()]
        names = made_names or references
        if _tested(node.test) is not None and names:
            yield str(node.test.comparators[0].value), names[0]                          # type: ignore[attr-defined]
        rest = node.orelse if isinstance(node.orelse, list) else [node.orelse]
        node = rest[0] if len(rest) == 1 else ast.Pass()


def _assigned(tree: Tree, node: ast.AST, name: str) -> ast.expr | None:
    """What a name is bound to, where there is just one assignment in the function or at module level."""
    function = tree.function(node)
    for home in dict.fromkeys((function, None)):
        found = [n.value for n in ast.walk(home or tree.root) if isinstance(n, ast.Assign) and tree.function(n) is home
                 and any(isinstance(t, ast.Name) and t.id == name for t in n.targets)]
        if found:
            return found[0] if len(found) == 1 else None
    return None
