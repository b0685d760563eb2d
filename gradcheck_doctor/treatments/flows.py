"""Where values come from in one file: names, attributes, entries of dictionaries, parameters, defaults, what functions return."""
from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator

from gradcheck_doctor.treatments.tree import Tree

DEPTH = 8              # steps that a name is followed back
MOST = 64              # places that a value can come from
KEYED = ("SimpleNamespace", "Namespace", "replace", "_replace", "set_defaults")      # calls whose keywords become attributes


def origins(tree: Tree, node: ast.expr) -> list[ast.expr]:
    """Where a value comes from, as far as this file says; what can't be followed, or can come from too many places, stands for itself."""
    found = list(dict.fromkeys(itertools.islice(_origins(tree, node, (node,)), MOST + 1)))
    return found if len(found) <= MOST else [node]


def _origins(tree: Tree, node: ast.expr, way: tuple[ast.expr, ...]) -> Iterator[ast.expr]:
    """Where a value comes from; what can't be followed is yielded as it is, what comes from itself (x = x[0]) not at all."""
    found: list[ast.expr] = [] if len(way) > DEPTH or isinstance(node, ast.Constant) else list(behind(tree, node))
    if not found:
        yield node
    for each in found:
        if each not in way:
            yield from _origins(tree, each, (*way, each))


def behind(tree: Tree, node: ast.expr) -> Iterator[ast.expr]:
    """What a value is, one step back: each of the expressions that it can stand for."""
    if isinstance(node, ast.Name):
        yield from _name(tree, node)
    elif isinstance(node, ast.Attribute):
        yield from list(field(tree, node.attr)) or _saved(tree, node)
    elif isinstance(node, ast.Subscript):
        yield from _element(tree, node)
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)
    elif isinstance(node, ast.BoolOp):
        yield from node.values
    elif isinstance(node, ast.Call):
        yield from _result(tree, node)


def _name(tree: Tree, node: ast.Name) -> Iterator[ast.expr]:
    """What a name is given in its function, else in those around that, else in the module."""
    functions = [n for n in tree.up(node) if isinstance(n, ast.FunctionDef)]
    for home in (*functions, None):
        found = list(_bound(tree, home, node.id)) or (list(given_for(tree, home, node.id)) if home is not None else [])
        if found:
            yield from found
            return
    yield from flags(tree, node.id)                                        # click hands them over by name


def _saved(tree: Tree, node: ast.Attribute) -> Iterator[ast.expr]:
    """self.hparams.lr is what __init__ got for lr."""
    home = next((n for n in tree.up(node) if isinstance(n, ast.ClassDef)), None)
    init = next((n for n in home.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None) if home is not None else None
    if init is not None and tree.source(node.value).endswith("hparams"):
        yield from given_for(tree, init, node.attr)


def flags(tree: Tree, name: str) -> Iterator[ast.expr]:
    """Defaults of add_argument("--name") and of click's option("--name")."""
    for node in ast.walk(tree.root):
        if (isinstance(node, ast.Call) and tree.source(node.func).endswith(("add_argument", "option"))
                and name in [str(a.value).lstrip("-").replace("-", "_") for a in node.args if isinstance(a, ast.Constant)]):
            yield from (k.value for k in node.keywords if k.arg == "default")


def _bound(tree: Tree, home: ast.FunctionDef | None, name: str) -> Iterator[ast.expr]:
    """What a name is given in a function, or at module level: a = x, a: float = x, a, b = x, y, and by a loop over a list that is written out."""
    for node in ast.walk(home or tree.root):
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.For)) and tree.function(node) is home and not isinstance(tree.parents.get(node), ast.ClassDef):
            values = _items(node.iter) if isinstance(node, ast.For) else [node.value]
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (part for t in targets for v in values for part in _matched(t, v, name))


def _matched(target: ast.expr, value: ast.expr | None, name: str) -> Iterator[ast.expr]:
    """The value that a target gives to `name`."""
    if isinstance(target, ast.Name) and target.id == name and value is not None:
        yield value
    elif isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, (ast.Tuple, ast.List)) and len(target.elts) == len(value.elts):
        for inner, part in zip(target.elts, value.elts, strict=True):
            yield from _matched(inner, part, name)


def _items(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, (ast.List, ast.Tuple)) else list(node.values) if isinstance(node, ast.Dict) else []


def _element(tree: Tree, node: ast.Subscript) -> Iterator[ast.expr]:
    """cfg["act"] by its key; rates[0] and RATES[kind] by what the list or dictionary is."""
    key = node.slice.value if isinstance(node.slice, ast.Constant) else None
    if isinstance(key, str):
        yield from _entries(tree, key)
        return
    for held in _containers(tree, node.value):
        items = _items(held)
        yield from items[key:][:1] if isinstance(key, int) and isinstance(held, (ast.List, ast.Tuple)) else items


def _containers(tree: Tree, node: ast.expr, steps: int = 3) -> list[ast.expr]:
    """The lists and dictionaries that are written out where a name leads."""
    if _items(node) or not steps:
        return [node] if _items(node) else []
    found = behind(tree, node) if isinstance(node, (ast.Name, ast.Attribute)) else ()
    return [held for each in found for held in _containers(tree, each, steps - 1)]


def _result(tree: Tree, node: ast.Call) -> Iterator[ast.expr]:
    """float(x), cfg.get("lr", 0.1), getattr(args, "lr", 0.1), and what a function of this file returns."""
    name = tree.source(node.func).rpartition(".")[2]
    key = next((a.value for a in node.args[:2] if isinstance(a, ast.Constant) and isinstance(a.value, str)), None)
    if name in ("float", "int", "str") and len(node.args) == 1:
        yield node.args[0]
    elif name in ("get", "pop") and isinstance(node.func, ast.Attribute) and key is not None:
        yield from (*_entries(tree, key), *node.args[1:])
    elif name == "getattr" and key is not None:
        yield from (*field(tree, key), *node.args[2:])
    elif tree.source(node.func) in (name, f"self.{name}", f"cls.{name}"):
        yield from _returned(tree, name)


def _returned(tree: Tree, name: str, *, attribute: bool = False) -> Iterator[ast.expr]:
    """What the one function of a name returns; of a property, where an attribute is asked for."""
    found = [n for n in ast.walk(tree.root) if isinstance(n, ast.FunctionDef) and n.name == name]
    if len(found) == 1 and attribute == any("property" in tree.source(d) for d in found[0].decorator_list):
        yield from (n.value for n in ast.walk(found[0]) if isinstance(n, ast.Return) and n.value is not None and tree.function(n) is found[0])


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
    """What self.act, args.act or cfg.act is, by the attribute's name: assignments, the argparse default, the field of a dataclass and what calls give for it,
    an attribute of a class, what a property returns."""
    yield from flags(tree, name)
    yield from _returned(tree, name, attribute=True)
    for other in ast.walk(tree.root):
        if isinstance(other, ast.Assign) and any(isinstance(t, ast.Attribute) and t.attr == name for t in other.targets):
            yield other.value
        elif isinstance(other, (ast.Assign, ast.AnnAssign)) and other.value is not None and isinstance(home := tree.parents[other], ast.ClassDef):
            targets = other.targets if isinstance(other, ast.Assign) else [other.target]
            if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                yield other.value
                yield from _constructed(tree, home, name)
        elif isinstance(other, ast.Call) and tree.source(other.func).rpartition(".")[2] in KEYED:
            yield from (k.value for k in other.keywords if k.arg == name)


def _constructed(tree: Tree, home: ast.ClassDef, name: str) -> Iterator[ast.expr]:
    """What calls of a dataclass or a NamedTuple give for a field, by its name or its place."""
    fields = [n.target.id for n in home.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    for call in ast.walk(tree.root):
        if isinstance(call, ast.Call) and tree.source(call.func) == home.name:
            yield from (k.value for k in call.keywords if k.arg == name)
            place = fields.index(name) if name in fields else len(call.args)
            if place < len(call.args) and not any(isinstance(a, ast.Starred) for a in call.args):
                yield call.args[place]


def _entries(tree: Tree, key: str) -> Iterator[ast.expr]:
    """cfg["act"]: the entries of that key in dictionaries of this file, and assignments to it."""
    for other in ast.walk(tree.root):
        if isinstance(other, ast.Dict):
            yield from (v for k, v in zip(other.keys, other.values, strict=True) if isinstance(k, ast.Constant) and k.value == key)
        elif isinstance(other, ast.Call) and (tree.source(other.func) == "dict" or tree.source(other.func).endswith(".update")):
            yield from (k.value for k in other.keywords if k.arg == key)
        elif isinstance(other, ast.Assign):
            yield from (other.value for t in other.targets if isinstance(t, ast.Subscript) and isinstance(t.slice, ast.Constant) and t.slice.value == key)
