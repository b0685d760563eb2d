"""Settings that choose an activation: "tanh" in a dictionary, an argparse default, a parameter. Changed only where the flow is certain."""
from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit
from gradcheck_doctor.treatments.tree import Tree

DEPTH = 8              # steps that a name is followed back


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


def origins(tree: Tree, node: ast.expr) -> list[ast.expr]:
    """Where a value comes from, as far as this file says; what can't be followed stands for itself."""
    return list(dict.fromkeys(_origins(tree, node, DEPTH)))


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


def changed(tree: Tree, found: Choice, to: str) -> Edit:
    """Let the setting name the class `to` (ReLU).

    Raises:
        TreatmentRefused: there is no name for it, or it can't be told for certain where the setting gets its value.
    """
    names = [to] if found.options is None else [key for key, value in found.options.items() if value == to]
    if not names:
        raise TreatmentRefused(f"{tree.source(found.setting)!r} chooses the activation and has no name for {to}; add it to the choices and set it there")
    sources = origins(tree, found.setting)
    if len(sources) == 1 and isinstance(sources[0], ast.Constant) and isinstance(sources[0].value, str):
        quote = tree.source(sources[0])[-1]
        return tree.replace(sources[0], f"{quote}{names[0]}{quote}")
    raise TreatmentRefused(f"the activation comes from a configuration: it can't be told where {tree.source(found.setting)!r} gets its value; "
                           f"set it to {names[0]!r} there")


def _options(tree: Tree, table: ast.Dict) -> dict[str, str]:
    """Class by key: {"relu": nn.ReLU, "tanh": nn.Tanh()}."""
    found = {}
    for key, value in zip(table.keys, table.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
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


def _origins(tree: Tree, node: ast.expr, depth: int) -> Iterator[ast.expr]:
    """Where a value comes from; what can't be followed is yielded as it is."""
    if depth == 0 or isinstance(node, ast.Constant):
        yield node
    elif isinstance(node, ast.Name):
        yield from _name(tree, node, depth)
    elif isinstance(node, ast.Attribute):
        found = list(field(tree, node.attr))
        yield from [o for f in found for o in _origins(tree, f, depth - 1)] if found else [node]
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        found = list(_entries(tree, node))
        yield from [o for f in found for o in _origins(tree, f, depth - 1)] if found else [node]
    else:
        yield node


def _name(tree: Tree, node: ast.Name, depth: int) -> Iterator[ast.expr]:
    function = tree.function(node)
    if function is not None and not any(isinstance(n, ast.Assign) and any(isinstance(t, ast.Name) and t.id == node.id for t in n.targets)
                                        for n in ast.walk(function)):
        given = list(given_for(tree, function, node.id))
        if given:
            yield from (o for g in given for o in _origins(tree, g, depth - 1))
            return
    value = _assigned(tree, node, node.id)
    yield from _origins(tree, value, depth - 1) if value is not None else [node]


def calls_of(tree: Tree, function: ast.FunctionDef) -> list[ast.Call]:
    """The calls of a function in this file by its name, of `__init__` by that of its class."""
    home = tree.parents.get(function)
    name = home.name if isinstance(home, ast.ClassDef) and function.name == "__init__" else function.name
    return [n for n in ast.walk(tree.root) if isinstance(n, ast.Call) and tree.source(n.func).rpartition(".")[2] == name]


def given_for(tree: Tree, function: ast.FunctionDef, name: str) -> Iterator[ast.expr]:
    """What a parameter gets in every call of its function in this file, else its default."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = dict(zip([a.arg for a in positional[len(positional) - len(arguments.defaults):]], arguments.defaults, strict=True))
    defaults.update({a.arg: d for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None})
    names = [a.arg for a in [*positional, *arguments.kwonlyargs]]
    if name not in names:
        return
    method = isinstance(tree.parents.get(function), ast.ClassDef)
    place = [a.arg for a in positional].index(name) - method if name in [a.arg for a in positional] else -1
    calls = calls_of(tree, function)
    for call in calls:
        keyword = next((k.value for k in call.keywords if k.arg == name), None)
        spread = any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords)
        if keyword is not None:
            yield keyword
        elif spread:
            yield call                                                                    # can't be followed
        elif 0 <= place < len(call.args):
            yield call.args[place]
        elif name in defaults:
            yield defaults[name]
    if not calls and name in defaults:
        yield defaults[name]


def field(tree: Tree, name: str) -> Iterator[ast.expr]:
    """What self.act, args.act or cfg.act is, by the attribute's name: assignments, the argparse default, the field of a dataclass and what calls give for it."""
    for other in ast.walk(tree.root):
        if isinstance(other, ast.Assign) and any(isinstance(t, ast.Attribute) and t.attr == name for t in other.targets):
            yield other.value
        elif isinstance(other, ast.AnnAssign) and isinstance(other.target, ast.Name) and other.target.id == name and other.value is not None:
            if isinstance(tree.parents[other], ast.ClassDef):
                yield other.value
                yield from (k.value for n in ast.walk(tree.root) if isinstance(n, ast.Call) and tree.source(n.func) == tree.parents[other].name  # type: ignore[attr-defined]
                            for k in n.keywords if k.arg == name)
        elif isinstance(other, ast.Call) and tree.source(other.func).endswith("add_argument"):
            names = [str(a.value).lstrip("-").replace("-", "_") for a in other.args if isinstance(a, ast.Constant)]
            if name in names:
                yield from (k.value for k in other.keywords if k.arg == "default")
        elif isinstance(other, ast.Call) and tree.source(other.func).rpartition(".")[2] in ("SimpleNamespace", "Namespace"):
            yield from (k.value for k in other.keywords if k.arg == name)


def _entries(tree: Tree, node: ast.Subscript) -> Iterator[ast.expr]:
    """cfg["act"]: the entries of that key in dictionaries of this file, and assignments to it."""
    key = node.slice.value if isinstance(node.slice, ast.Constant) else None
    for other in ast.walk(tree.root):
        if isinstance(other, ast.Dict):
            yield from (v for k, v in zip(other.keys, other.values, strict=True) if isinstance(k, ast.Constant) and k.value == key)
        elif isinstance(other, ast.Call) and tree.source(other.func) == "dict":
            yield from (k.value for k in other.keywords if k.arg == key)
        elif isinstance(other, ast.Assign):
            yield from (other.value for t in other.targets if isinstance(t, ast.Subscript) and isinstance(t.slice, ast.Constant) and t.slice.value == key)
