"""What the user's own files say, beside what ran: read once, never executed."""
from __future__ import annotations

import ast
import functools
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from gradcheck_doctor.observe.provenance import ConstructionLog, characters, is_user_file
from gradcheck_doctor.records.by_gradient import given_names, of_gradient
from gradcheck_doctor.records.edited import current
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


@dataclass(frozen=True)
class Source:
    """One parsed file; what is asked of it is found once, for a recording is asked for again and again while a training runs."""

    file: str
    tree: ast.Module

    @functools.cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """Every node, parents before children."""
        return tuple(ast.walk(self.tree))

    @functools.cached_property
    def homes(self) -> tuple[list[ast.AST], ...]:
        """The nodes of each function, what it defines included, then those outside of functions."""
        inside: set[ast.AST] = set()
        found = []
        for function in self.nodes:
            if isinstance(function, ast.FunctionDef) and function not in inside:
                nodes = list(ast.walk(function))
                inside.update(nodes)
                found.append(nodes)
        return (*found, [n for n in self.nodes if n not in inside])

    @functools.cached_property
    def scopes(self) -> tuple[list[ast.Assign | ast.Call], ...]:
        """The assignments and calls of each of these, in the order of the source."""
        return tuple(map(_ordered, self.homes))

    @functools.cached_property
    def clips(self) -> bool:
        """It calls a clipping function or sets an option that clips."""
        return any(map(_clips, self.nodes))

    @functools.cached_property
    def clip_option(self) -> Span | None:
        """The first option that makes a Trainer clip: gradient_clip_val=1.0."""
        return next((self.place(n) for n in self.nodes if isinstance(n, ast.keyword) and _clips(n)), None)

    @functools.cached_property
    def spreads(self) -> tuple[Span, ...]:
        """Divisors that are a standard deviation, called in place or kept under a name."""
        names = frozenset(name for node in self.nodes if isinstance(node, ast.Assign) for name in _spread_names(node))
        divisors = [node.right if isinstance(node, ast.BinOp) else node.value for node in self.nodes
                    if isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, ast.Div)]
        return tuple(self.place(divisor) for divisor in divisors if _is_spread(divisor, names))

    @functools.cached_property
    def left_in_eval(self) -> Span | None:
        """The first `model.eval()` that no `.train()` follows in its function."""
        for scope in self.scopes:
            calls = [n for n in scope if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and not n.keywords]
            back = max((c.lineno for c in calls if c.func.attr == "train"), default=0)                                     # type: ignore[attr-defined]
            for call in calls:
                if call.func.attr == "eval" and not call.args and call.lineno > back:                                      # type: ignore[attr-defined]
                    return self.place(call)
        return None

    @functools.cached_property
    def freezing(self) -> Span | None:
        """The first `x.requires_grad = False` or `x.requires_grad_(False)`; without one, the first that is given an expression: `name in trained`."""
        computed = None
        for node in (n for scope in self.scopes for n in scope):
            if isinstance(node, ast.Call) and len(node.args) != 1:
                continue
            target, value = (node.targets[0], node.value) if isinstance(node, ast.Assign) else (node.func, node.args[0])
            if not isinstance(target, ast.Attribute) or target.attr not in ("requires_grad", "requires_grad_"):
                continue
            if isinstance(value, ast.Constant) and value.value is False:
                return self.place(node)
            if computed is None and not isinstance(value, ast.Constant):
                computed = self.place(node)
        return computed

    @functools.cached_property
    def uncalled_steps(self) -> tuple[Span, ...]:
        """Statements that name a method `step` and do not call it: `optimizer.step`."""
        return tuple(self.place(n.value) for n in self.nodes if isinstance(n, ast.Expr) and isinstance(n.value, ast.Attribute) and n.value.attr == "step")

    @functools.cached_property
    def dropping(self) -> tuple[Span, ...]:
        """Calls F.dropout(x, p) that say nothing of the mode, so that they drop in eval mode, too."""
        functions = [f for f in self.nodes if isinstance(f, ast.FunctionDef) and any(isinstance(n, ast.If) and "training" in ast.unparse(n.test) for n in ast.walk(f))]
        choices = [n for n in self.nodes if isinstance(n, (ast.If, ast.IfExp)) and "training" in ast.unparse(n.test)]
        asked = {id(n) for around in (*functions, *choices) for n in ast.walk(around)}          # `if not self.training: return x` in front of it, say
        calls = [n for n in self.nodes if isinstance(n, ast.Call) and len(n.args) < 3 and id(n) not in asked and not any(k.arg in (None, "training") for k in n.keywords)]
        return tuple(self.place(n) for n in calls if isinstance(n.func, (ast.Name, ast.Attribute))
                     and "dropout" in (n.func.id if isinstance(n.func, ast.Name) else n.func.attr))

    @functools.cached_property
    def evaluates(self) -> bool:
        """The file calls eval() of something."""
        return any(isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "eval" and not n.args for n in self.nodes)

    @functools.cached_property
    def own_updates(self) -> tuple[Span, ...]:
        """Statements that change something by a gradient: `p -= lr * p.grad`, `p.add_(p.grad, alpha=-lr)`, `p.data = p.data - lr * p.grad`;
        or by one that torch.autograd.grad gave a name to."""
        given = [(home, given_names(home)) for home in self.homes]
        return tuple(sorted((self.place(n) for home, names in given for n in home if _updates(n, names)), key=lambda span: span.line))  # type: ignore[arg-type]

    @functools.cached_property
    def switches(self) -> tuple[tuple[int, int, Span], ...]:
        """(first line, last line, no_grad() or its like) of each block and function that runs without gradients, outer ones first."""
        found = []
        for node in self.nodes:
            if isinstance(node, (ast.With, ast.FunctionDef)):
                for switch in [i.context_expr for i in node.items] if isinstance(node, ast.With) else node.decorator_list:
                    name = switch.func if isinstance(switch, ast.Call) else switch
                    if isinstance(name, (ast.Name, ast.Attribute)) and (name.id if isinstance(name, ast.Name) else name.attr) in SWITCHES:
                        found.append((node.lineno, node.end_lineno or node.lineno, self.place(switch)))
        return tuple(found)

    def place(self, node: ast.expr | ast.stmt | ast.keyword) -> Span:
        end = node.end_lineno or node.lineno
        return Span(self.file, node.lineno, characters(self.file, node.lineno, node.col_offset) + 1, end,
                    characters(self.file, end, node.end_col_offset or 0) + 1)


def source(file: str) -> Source | None:
    """A file as it is now, None when it is gone or does not parse."""
    try:
        return _parsed(file, os.stat(current(file)).st_mtime_ns)
    except (OSError, SyntaxError, ValueError):
        return None


@functools.lru_cache(maxsize=64)
def _parsed(file: str, changed: int) -> Source:
    with open(current(file), "rb") as stream:
        return Source(file, ast.parse(stream.read(), file))


def without_gradients(span: Span | None) -> Span | None:
    """The no_grad() (or its like) of the `with` block, or of the decorator, that the expression at `span` runs under; None when it is further out."""
    of = source(span.file) if span is not None else None
    if of is None or span is None:
        return None
    around = [(start, end, place) for start, end, place in of.switches if start <= span.line <= end]
    return around[-1][2] if around else None


def zeroed_between(backward: Span | None, step: Span | None) -> Span | None:
    """The zero_grad() that stands between a backward() and the step() behind it, None when it is not there."""
    of = source(step.file) if step is not None and backward is not None and step.file == backward.file else None
    if of is None or step is None or backward is None:
        return None
    places = [of.place(n) for n in of.nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "zero_grad"]
    return min((p for p in places if backward < p < step), default=None)


def sources(files: Iterable[str]) -> list[Source]:
    """Those of the files that can be read."""
    return [found for file in files if (found := source(file)) is not None]


def _clips(node: ast.AST) -> bool:
    if isinstance(node, (ast.Name, ast.Attribute)):
        return (node.id if isinstance(node, ast.Name) else node.attr) in CLIPPING_CALLS
    return isinstance(node, ast.keyword) and node.arg in CLIPPING_OPTIONS and not (isinstance(node.value, ast.Constant) and not node.value.value)


def _updates(node: ast.AST, given: frozenset[str]) -> bool:
    """The statement changes a value by one that a `.grad`, or a gradient of one of the names `given`, is part of."""
    if isinstance(node, ast.AugAssign):
        return isinstance(node.op, (ast.Sub, ast.Add)) and of_gradient(node.value, given)
    if isinstance(node, ast.Assign):
        return isinstance(node.value, ast.BinOp) and isinstance(node.value.op, (ast.Sub, ast.Add)) and of_gradient(node.value.right, given)
    return (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute)
            and node.value.func.attr in ("sub_", "add_", "addcmul_", "copy_") and any(of_gradient(n, given) for n in node.value.args))


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


def _ordered(nodes: Iterable[ast.AST]) -> list[ast.Assign | ast.Call]:
    return sorted((n for n in nodes if isinstance(n, (ast.Assign, ast.Call))), key=lambda n: (n.lineno, n.col_offset))
