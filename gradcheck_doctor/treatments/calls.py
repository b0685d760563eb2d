"""What calls in the source are given, and which methods are called in a statement."""
from __future__ import annotations

import ast
from collections.abc import Iterator


def argument(call: ast.Call, name: str, position: int | None = None) -> ast.expr | None:
    """An argument of a call by its keyword or its place, None where it is not written."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    return call.args[position] if position is not None and len(call.args) > position else None


def owner(made: ast.Call) -> ast.expr | None:
    """MODEL of SGD(MODEL.parameters())."""
    first = argument(made, "params", 0)
    if isinstance(first, ast.Call) and isinstance(first.func, ast.Attribute) and first.func.attr == "parameters":
        return first.func.value
    return None


def attribute(path: str) -> str:
    """Source for a module path: body.0.linear -> .body[0].linear."""
    return "".join(f"[{p}]" if p.isdigit() else f".{p}" for p in path.split(".") if p)


def methods(node: ast.AST, *names: str) -> Iterator[ast.Call]:
    """Calls x.NAME(...) inside a node; a scheduler's step is not an optimizer's."""
    for inner in ast.walk(node):
        if (isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and inner.func.attr in names
                and "sched" not in ast.unparse(inner.func).lower()):
            yield inner


def method(node: ast.AST, *names: str) -> ast.Call | None:
    """The first of `methods`."""
    return next(methods(node, *names), None)


def entry(table: ast.expr, names: tuple[str, ...]) -> ast.expr | None:
    """The value of a key in {...} or dict(...)."""
    if isinstance(table, ast.Dict):
        return next((v for k, v in zip(table.keys, table.values, strict=True) if isinstance(k, ast.Constant) and k.value in names), None)
    return next((k.value for k in table.keywords if k.arg in names), None) if isinstance(table, ast.Call) else None
