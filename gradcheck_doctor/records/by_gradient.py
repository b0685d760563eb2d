"""Which expressions of a source file are made of gradients."""
from __future__ import annotations

import ast
from collections.abc import Iterable


def of_gradient(node: ast.AST, given: frozenset[str]) -> bool:
    """Whether a `.grad`, or one of the names `given` to gradients, is part of it."""
    return any(isinstance(n, ast.Attribute) and n.attr == "grad" or isinstance(n, ast.Name) and n.id in given for n in ast.walk(node))


def given_names(nodes: Iterable[ast.AST]) -> frozenset[str]:
    """Names of what torch.autograd.grad gave, all of it or one gradient: `grads = grad(loss, w)`, `gw, gb = grad(...)`, `for p, g in zip(w, grads)`."""
    nodes = list(nodes)
    found = {n.id for node in nodes if isinstance(node, ast.Assign) and _asks(node.value) for target in node.targets
             for n in ast.walk(target) if isinstance(n, ast.Name)}
    for node in nodes:
        if isinstance(node, (ast.For, ast.comprehension)):
            paired = isinstance(node.iter, ast.Call) and isinstance(node.target, ast.Tuple)
            for target, value in zip(node.target.elts, node.iter.args, strict=False) if paired else ((node.target, node.iter),):  # type: ignore[attr-defined]
                if isinstance(target, ast.Name) and (_asks(value) or isinstance(value, ast.Name) and value.id in found):
                    found.add(target.id)
    return frozenset(found)


def _asks(node: ast.expr) -> bool:
    """`torch.autograd.grad(...)`, `autograd.grad(...)` or `grad(...)`."""
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(called, ast.Name) and called.id == "grad" or isinstance(called, ast.Attribute) and called.attr == "grad"
