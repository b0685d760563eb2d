"""The number behind an expression: a literal, a default, an entry of a dictionary, a field of a dataclass, a value in a JSON or YAML text."""
from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.treatments.flows import calls_of, flags, origins
from gradcheck_doctor.treatments.tree import Tree, offsets

PARSERS = ("loads", "load", "safe_load")              # of json, yaml and tomllib
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: operator.pow}
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def number(value: float) -> str:
    """A number as people write it: three digits, 1e-7 rather than 1e-07.

    >>> number(1e-7), number(0.000769231), number(0.05)
    ('1e-7', '0.000769', '0.05')
    """
    return re.sub(r"e([+-])0+", r"e\1", f"{value:.3g}")


def constant(tree: Tree, node: ast.expr, value: str, old: float | None = None) -> Edit:
    """Set the number behind an expression.

    Args:
        old: the value that was seen there: the one place that has it is meant, and what stands elsewhere must not move the other way.

    Raises:
        TreatmentRefused: it can't be told where the number comes from.
    """
    places = seen(tree, node, old) if old is not None else []
    if len(places) != 1:
        places = _certain(tree, node)
    if len(places) == 1:
        _on_the_right_side(places[0], value, old)
        return tree.replace(places[0], value)
    computed = _computed(tree, node) if not places else None
    if computed is not None:
        return tree.replace(computed, value)
    written = _written(tree, node, old) if old is not None and not places else []
    if len(written) == 1:
        return Edit(written[0], value)
    raise TreatmentRefused(f"it can't be told where {tree.source(node)!r} gets its value; set it to {value} there")


def scaled(tree: Tree, node: ast.expr, factor: float) -> Edit:
    """Multiply the number behind an expression, where it stands if that can be told, else where the expression does."""
    sources = origins(tree, node)
    places = sources if all(literal(n) is not None for n in sources) else _certain(tree, node)
    if len(places) == 1 and (here := literal(places[0])) is not None:
        return tree.replace(places[0], number(here * factor))
    return tree.replace(node, f"{number(factor)} * {tree.operand(node)}")


def _computed(tree: Tree, node: ast.expr) -> ast.expr | None:
    """base * 10, the one thing that the expression can stand for, where no second caller gets another number by it."""
    found = origins(tree, node)
    if len(found) != 1 or not isinstance(found[0], ast.BinOp):
        return None
    function = tree.function(found[0])
    return found[0] if function is None or len(calls_of(tree, function)) <= 1 else None


def literal(node: ast.expr) -> float | None:
    """The number that an expression spells out: 0.1, -1, 2 ** -3; None for anything else."""
    if isinstance(node, ast.BinOp):
        left, right = literal(node.left), literal(node.right)
        try:
            return ARITHMETIC[type(node.op)](left, right) if left is not None and right is not None and type(node.op) in ARITHMETIC else None
        except (ArithmeticError, TypeError):
            return None
    try:
        found = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return None
    return float(found) if isinstance(found, (int, float)) and not isinstance(found, bool) else None


def _same(a: float | None, b: float) -> bool:
    return a is not None and abs(a - b) <= 1e-6 * abs(b)


def _on_the_right_side(place: ast.expr, value: str, old: float | None) -> None:
    """A rate that is to be raised is not lowered, where something scales what stands in the source."""
    here = literal(place)
    if old is not None and here is not None and (float(value) - old) * (float(value) - here) <= 0:
        raise TreatmentRefused(f"{here:g} stands in the source where {old:g} was seen: something in between changes it, and {value} would go the other way")


def seen(tree: Tree, node: ast.expr, old: float) -> list[ast.expr]:
    """Literals of the value that was seen, among those that the flow of values leads to and those that the name or key is given anywhere in the file."""
    name = _named(node)
    found = [*origins(tree, node), *(definitions(tree, name) if name is not None else _entries(tree, node))]
    return [n for n in dict.fromkeys(found) if _same(literal(n), old)]


def _certain(tree: Tree, node: ast.expr) -> list[ast.expr]:
    """Literals that the expression can stand for, whatever was seen: itself, an entry of a dictionary that nothing else touches, what its name is given."""
    if isinstance(node, (ast.Constant, ast.UnaryOp)):
        return [node]
    entry, name = _entry(tree, node), _named(node)
    found = [entry] if entry is not None else definitions(tree, name) if name is not None else []
    keyed = isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str)
    sources = [] if len(found) == 1 or keyed else origins(tree, node)              # other dictionaries may have the key too
    return sources if len(sources) == 1 and literal(sources[0]) is not None else found


def _named(node: ast.expr) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None


def _entry(tree: Tree, node: ast.expr) -> ast.expr | None:
    """The number behind cfg["lr"], where `cfg` is assigned once in the file, a dictionary with that entry, and none of its entries is set later."""
    if not isinstance(node, ast.Subscript) or not isinstance(node.value, ast.Name) or not isinstance(node.slice, ast.Constant):
        return None
    name, key = node.value.id, node.slice.value
    given = [n for n in ast.walk(tree.root) if isinstance(n, (ast.Assign, ast.AnnAssign))]
    targets = [(t, n.value) for n in given for t in (n.targets if isinstance(n, ast.Assign) else [n.target])]
    made = [value for t, value in targets if isinstance(t, ast.Name) and t.id == name]
    changed = any(isinstance(t, ast.Subscript) and isinstance(t.value, ast.Name) and t.value.id == name for t, _ in targets)
    argument = any(isinstance(n, ast.arg) and n.arg == name for n in ast.walk(tree.root))
    if len(made) != 1 or changed or argument:
        return None
    table = made[0]
    found: list[ast.expr] = []
    if isinstance(table, ast.Dict):
        found = [v for k, v in zip(table.keys, table.values, strict=True) if isinstance(k, ast.Constant) and k.value == key]
    elif isinstance(table, ast.Call) and isinstance(table.func, ast.Name) and table.func.id == "dict":
        found = [k.value for k in table.keywords if k.arg == key]
    return found[0] if len(found) == 1 and isinstance(found[0], (ast.Constant, ast.UnaryOp)) else None


def _entries(tree: Tree, node: ast.expr) -> list[ast.expr]:
    """What dictionaries of the file have under the key of cfg["lr"]."""
    if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Constant):
        return []
    return [v for n in ast.walk(tree.root) if isinstance(n, ast.Dict) for k, v in zip(n.keys, n.values, strict=True)
            if isinstance(k, ast.Constant) and k.value == node.slice.value]


def definitions(tree: Tree, name: str) -> list[ast.expr]:
    """Literal values that `name` is given: assignments, defaults of parameters, entries of dictionaries, argparse defaults."""
    found: list[ast.expr] = []
    for node in ast.walk(tree.root):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            arguments = node.args
            positional = [*arguments.posonlyargs, *arguments.args]
            pairs = [*zip(positional[len(positional) - len(arguments.defaults):], arguments.defaults, strict=True),
                     *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
            found += [d for a, d in pairs if a.arg == name and isinstance(d, ast.Constant)]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id == name for t in targets) and isinstance(node.value, ast.Constant):
                found.append(node.value)
        elif isinstance(node, ast.keyword) and node.arg == name and isinstance(node.value, ast.Constant):
            owner = tree.parents.get(node)
            if isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name) and owner.func.id in _local_names(tree):
                found.append(node.value)
    return [*found, *(n for n in flags(tree, name) if isinstance(n, ast.Constant))]


def _local_names(tree: Tree) -> set[str]:
    return {n.name for n in ast.walk(tree.root) if isinstance(n, (ast.FunctionDef, ast.ClassDef))} | {"dict", "SimpleNamespace", "Namespace"}


def _written(tree: Tree, node: ast.expr, old: float) -> list[Span]:
    """Places of the value `old` behind the key of cfg["lr"] (or cfg.lr) in texts that the file parses itself: json.loads('{"lr": 0.5}')."""
    key = node.slice.value if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) else node.attr if isinstance(node, ast.Attribute) else None
    return [span for text in _texts(tree) for span in _values(tree, text, str(key), old)] if key is not None else []


def _texts(tree: Tree) -> Iterator[ast.Constant]:
    calls = (n for n in ast.walk(tree.root) if isinstance(n, ast.Call) and n.args and tree.source(n.func).rpartition(".")[2] in PARSERS)
    for found in dict.fromkeys(o for call in calls for o in origins(tree, call.args[0])):
        if isinstance(found, ast.Constant) and isinstance(found.value, str):
            yield found


def _values(tree: Tree, text: ast.Constant, key: str, old: float) -> Iterator[Span]:
    whole, source = tree.span(text), tree.source(text)
    begin, _ = offsets(tree.starts, whole)
    for match in re.finditer(rf"""(?<![\w.-])["']?{re.escape(key)}["']?\s*[:=]\s*({NUMBER})(?![\w.])""", source):
        if _same(float(match[1]), old):
            line = max(n for n, start in enumerate(tree.starts, 1) if start <= begin + match.start(1))
            column = begin + match.start(1) - tree.starts[line - 1] + 1
            yield Span(tree.file, line, column, line, column + len(match[1]))
