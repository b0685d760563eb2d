"""What the user's own files say, beside what ran: read once, never executed."""
from __future__ import annotations

import ast
import functools
import os
import sys
from collections.abc import Iterable, Iterator

from torch import nn

from gradcheck_doctor.observe.provenance import ConstructionLog, characters, is_user_file
from gradcheck_doctor.records.sites import Span

CLIPPING_CALLS = frozenset({"clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "clip_gradients"})
SWITCHES = frozenset({"no_grad", "inference_mode", "set_grad_enabled"})
CLIPPING_OPTIONS = frozenset({"gradient_clip_val", "max_grad_norm", "clipnorm"})


def class_file(module: nn.Module) -> str | None:
    """The user's file that defines the class of `module`, None for a library's."""
    name = getattr(sys.modules.get(type(module).__module__), "__file__", None)
    return name if name is not None and is_user_file(name) else None


def user_files(models: Iterable[nn.Module], log: ConstructionLog | None) -> tuple[str, ...]:
    """The user's files that define or build any part of `models`."""
    found: dict[str | None, None] = {}
    for model in models:
        for module in model.modules():
            span = log.spans.get(module) if log is not None else None
            found |= {class_file(module): None, (span.file if span is not None else None): None}
    return tuple(dict.fromkeys(os.path.realpath(file) for file in found if file is not None))


def syntax(file: str) -> ast.Module | None:
    """Syntax tree of a file, None when it is gone or does not parse."""
    try:
        return _parsed(file, os.stat(file).st_mtime_ns)
    except (OSError, SyntaxError, ValueError):
        return None


@functools.lru_cache(maxsize=64)
def _parsed(file: str, changed: int) -> ast.Module:
    with open(file, "rb") as source:
        return ast.parse(source.read(), file)


def without_gradients(span: Span | None) -> Span | None:
    """The no_grad() (or its like) of the `with` block, or of the decorator, that the expression at `span` runs under; None when it is further out."""
    tree = syntax(span.file) if span is not None else None
    if tree is None or span is None:
        return None
    around = [n for n in ast.walk(tree) if isinstance(n, (ast.With, ast.FunctionDef)) and n.lineno <= span.line <= (n.end_lineno or n.lineno)]
    for node in reversed(around):
        switches = [i.context_expr for i in node.items] if isinstance(node, ast.With) else node.decorator_list
        for switch in switches:
            name = switch.func if isinstance(switch, ast.Call) else switch
            if isinstance(name, (ast.Name, ast.Attribute)) and (name.id if isinstance(name, ast.Name) else name.attr) in SWITCHES:
                return _place(span.file, switch)
    return None


def zeroed_between(backward: Span | None, step: Span | None) -> Span | None:
    """The zero_grad() that stands between a backward() and the step() behind it, None when it is not there."""
    tree = syntax(step.file) if step is not None and backward is not None and step.file == backward.file else None
    if tree is None or step is None or backward is None:
        return None
    places = [_place(step.file, n) for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "zero_grad"]
    return min((p for p in places if backward < p < step), default=None)


def _place(file: str, node: ast.expr | ast.stmt) -> Span:
    end = node.end_lineno or node.lineno
    return Span(file, node.lineno, characters(file, node.lineno, node.col_offset) + 1, end, characters(file, end, node.end_col_offset or 0) + 1)


def clips_gradients(files: Iterable[str]) -> bool:
    """Whether any of the files calls a clipping function or sets an option that clips."""
    return any(_clips(node) for file in files if (tree := syntax(file)) is not None for node in ast.walk(tree))


def _clips(node: ast.AST) -> bool:
    if isinstance(node, (ast.Name, ast.Attribute)):
        return (node.id if isinstance(node, ast.Name) else node.attr) in CLIPPING_CALLS
    return isinstance(node, ast.keyword) and node.arg in CLIPPING_OPTIONS and not (isinstance(node.value, ast.Constant) and not node.value.value)


def divisions_by_spread(files: Iterable[str]) -> tuple[Span, ...]:
    """The divisors that are a standard deviation, called in place or kept under a name; it is 0 for a feature that is constant."""
    return tuple(span for file in files if (tree := syntax(file)) is not None for span in _spreads(file, tree))


def _spreads(file: str, tree: ast.Module) -> Iterator[Span]:
    names = {name for node in ast.walk(tree) if isinstance(node, ast.Assign) for name in _spread_names(node)}
    for node in ast.walk(tree):
        if not isinstance(node, (ast.BinOp, ast.AugAssign)) or not isinstance(node.op, ast.Div):
            continue
        divisor = node.right if isinstance(node, ast.BinOp) else node.value
        if _is_spread(divisor, frozenset(names)):
            yield _place(file, divisor)


def _spread_names(node: ast.Assign) -> Iterator[str]:
    for target in node.targets:
        paired = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
        for name, value in zip(target.elts, node.value.elts, strict=False) if paired else ((target, node.value),):  # type: ignore[attr-defined]
            if isinstance(name, ast.Name) and _is_spread(value, frozenset()):
                yield name.id


def _is_spread(node: ast.expr, names: frozenset[str]) -> bool:
    """x.std(...), one of `names`, or such a value with something added."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _is_spread(node.left, names) or _is_spread(node.right, names)
    if isinstance(node, ast.Name):
        return node.id in names
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("std", "nanstd")


def left_in_eval(files: Iterable[str]) -> Span | None:
    """The first `model.eval()` that no `.train()` follows in its function."""
    for file in files:
        for scope in _scopes(syntax(file)):
            calls = [n for n in scope if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and not n.keywords]
            back = max((c.lineno for c in calls if c.func.attr == "train"), default=0)                                     # type: ignore[attr-defined]
            for call in calls:
                if call.func.attr == "eval" and not call.args and call.lineno > back:                                      # type: ignore[attr-defined]
                    return _place(file, call)
    return None


def freezing(files: Iterable[str]) -> Span | None:
    """The first `x.requires_grad = False` or `x.requires_grad_(False)`."""
    for file in files:
        for scope in _scopes(syntax(file)):
            for node in scope:
                if isinstance(node, ast.Assign):
                    target, value = node.targets[0], node.value
                elif isinstance(node, ast.Call) and len(node.args) == 1:
                    target, value = node.func, node.args[0]
                else:
                    continue
                if (isinstance(target, ast.Attribute) and target.attr in ("requires_grad", "requires_grad_")
                        and isinstance(value, ast.Constant) and value.value is False):
                    return _place(file, node)
    return None


def _scopes(tree: ast.Module | None) -> Iterator[list[ast.AST]]:
    """The nodes of each function, then those outside of functions, in the order of the source."""
    inside: set[ast.AST] = set()
    for function in ast.walk(tree) if tree is not None else ():
        if isinstance(function, ast.FunctionDef) and function not in inside:
            nodes = list(ast.walk(function))
            inside.update(nodes)
            yield _ordered(nodes)
    if tree is not None:
        yield _ordered(n for n in ast.walk(tree) if n not in inside)


def _ordered(nodes: Iterable[ast.AST]) -> list[ast.AST]:
    return sorted(nodes, key=lambda n: (getattr(n, "lineno", 0), getattr(n, "col_offset", 0)))
