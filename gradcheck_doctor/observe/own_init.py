"""Where the source makes or fills a parameter when no nn.init call was seen: `self.W = nn.Parameter(...)`, `m.weight.data.normal_(0, 0.02)`."""
from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from gradcheck_doctor.observe.source import Source, class_file, source
from gradcheck_doctor.records.recording import Operation, ParameterRecord
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.theory.schemes import DEFAULT

MAKERS = frozenset({"randn", "rand", "normal", "full", "ones", "zeros", "empty", "Parameter"})
DRAWS = frozenset({"normal_", "uniform_", "fill_", "zero_", "exponential_", "log_normal_"})
FILLS = DRAWS | {"copy_", "mul_", "div_"}       # of a named parameter only: p.data.copy_(...) in a loop is as often a moving average
CLOSE = 0.15           # of a spread: drawn values against what the call asks for


@dataclass(frozen=True)
class Fill:
    """One statement that sets the elements of a parameter; `names` are those in front of the method: m, weight, data."""

    names: tuple[str, ...]
    method: str
    numbers: tuple[float, ...] | None       # its arguments, where all of them are spelled out
    span: Span

    def can_be(self, record: ParameterRecord) -> bool:
        """What the parameter holds is what this statement writes, as far as its numbers tell."""
        if self.numbers is None:
            return True
        low, high = (*self.numbers, *(0.0, 1.0)[len(self.numbers):])[:2] if len(self.numbers) <= 2 else (0.0, 1.0)
        if self.method in ("fill_", "zero_"):
            return record.std <= 1e-6 * abs(record.mean) and abs(record.mean - low) <= 1e-6 * max(abs(low), 1.0)
        if self.method == "normal_":
            return abs(record.std - high) <= CLOSE * high and abs(record.mean - low) <= CLOSE * high
        if self.method == "uniform_":
            return abs(record.std - (high - low) / 12**0.5) <= CLOSE * (high - low)
        return True


def located(records: Sequence[ParameterRecord], modules: Mapping[str, nn.Module], read: Sequence[Source]) -> tuple[ParameterRecord, ...]:
    """The records, with `made` where the source tells it.

    Args:
        modules: by path.
        read: the user's files.
    """
    fills = [fill for of in read for fill in _fills(of)]
    return tuple(replace(r, made=_made(r, modules.get(r.module), fills)) if r.init_span is None and not r.trained else r for r in records)


def drawn(records: Sequence[ParameterRecord], operations: Iterable[Operation], read: Sequence[Source]) -> tuple[ParameterRecord, ...]:
    """The records of bare tensors, and of those in dictionaries of parameters, with `made` where the operand of their product, `x @ W1` or `x @ p["W1"]`, is
    given its value once: `W1 = torch.randn(...)`."""
    used = {name: o for o in operations for name in o.parameters}
    files = {of.file: of for of in read}
    return tuple(replace(r, made=_drawn_at(files, o, r)) if r.origin is None and not r.trained and (o := used.get(r.name)) is not None else r
                 for r in records)


def _drawn_at(files: Mapping[str, Source], operation: Operation, record: ParameterRecord) -> Span | None:
    of = files.get(operation.called.file) if operation.called is not None else None
    if of is None or operation.op not in ("matmul", "mm", "addmm", "linear"):
        return None
    at = operation.called
    node = next((n for n in of.nodes if isinstance(n, (ast.BinOp, ast.Call)) and n.lineno == at.line and of.place(n) == at), None)      # type: ignore[union-attr]
    operands = [node.left, node.right] if isinstance(node, ast.BinOp) else node.args if node is not None else []
    fits = [o for o, shape in zip(operands, operation.input_shapes, strict=False) if shape in (record.shape, record.shape[::-1])]
    for operand in reversed(fits):                                  # x @ W: weights are mostly on the right
        given = _given(of, operand)
        if len(given) == 1 and any(isinstance(n, ast.Attribute) and n.attr in MAKERS for n in ast.walk(given[0])):
            return of.place(given[0])
    return None


def _given(of: Source, operand: ast.expr) -> list[ast.expr]:
    """What `W` is assigned, and what `self.p["W"]` has under its key, in the file."""
    keys = {n.slice.value for n in ast.walk(operand) if isinstance(n, ast.Subscript) and isinstance(n.slice, ast.Constant) and isinstance(n.slice.value, str)}
    if len(keys) != 1:
        names = {n.id for n in ast.walk(operand) if isinstance(n, ast.Name)}
        return [v for n in of.nodes if isinstance(n, ast.Assign) for t, v in _pairs(n) if isinstance(t, ast.Name) and {t.id} == names]
    found: list[ast.expr] = []
    for node in of.nodes:
        if isinstance(node, ast.Dict):
            found += [v for k, v in zip(node.keys, node.values, strict=True) if isinstance(k, ast.Constant) and k.value in keys]
        elif isinstance(node, ast.Assign):
            found += [v for t, v in _pairs(node) if isinstance(t, ast.Subscript) and isinstance(t.slice, ast.Constant) and t.slice.value in keys]
    return _given(of, found[0]) if len(found) == 1 and isinstance(found[0], ast.Name) else found


def _made(record: ParameterRecord, owner: nn.Module | None, fills: Sequence[Fill]) -> Span | None:
    filled = [f for f in fills if f.can_be(record)] if not record.scheme.startswith(DEFAULT) and record.count else []
    named = {f.span for f in filled if record.role in f.names}
    anyhow = {f.span for f in filled if f.names[-1:] == ("data",) and len(f.names) == 2 and f.method in DRAWS}
    chosen = named or anyhow
    if len(chosen) == 1:
        return chosen.pop()
    return _assigned(owner, record.role) if owner is not None and not chosen else None


def _assigned(owner: nn.Module, role: str) -> Span | None:
    """`nn.Parameter(...)` of `self.ROLE = nn.Parameter(...)` in the user's class."""
    file = class_file(owner)
    of = source(file) if file is not None else None
    return _assignments(of).get((type(owner).__name__, role)) if of is not None else None


@functools.lru_cache(maxsize=64)
def _assignments(of: Source) -> dict[tuple[str, str], Span]:
    """(class, attribute) -> what the class first assigns to it."""
    found: dict[tuple[str, str], Span] = {}
    for node in of.nodes:
        for inner in ast.walk(node) if isinstance(node, ast.ClassDef) else ():
            for target, value in _pairs(inner) if isinstance(inner, ast.Assign) else ():
                if isinstance(target, ast.Attribute):
                    found.setdefault((node.name, target.attr), of.place(value))  # type: ignore[attr-defined]
    return found


def _pairs(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    """What is assigned to what: also of `self.a, self.b = 1, 2`."""
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple) and len(target.elts) == len(node.value.elts):
            yield from zip(target.elts, node.value.elts, strict=True)
        else:
            yield target, node.value


@functools.lru_cache(maxsize=64)
def _fills(of: Source) -> tuple[Fill, ...]:
    """Statements `x.weight.data.normal_(...)` and `x.weight.data = ...`."""
    return tuple(_found(of))


def _found(of: Source) -> Iterator[Fill]:
    for node in of.nodes:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute) and node.value.func.attr in FILLS:
            names = _chain(node.value.func.value)
            if len(names) > 1:
                yield Fill(names, node.value.func.attr, _numbers(node.value), of.place(node.value))
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and (names := _chain(node.targets[0]))[-1:] == ("data",):
            yield Fill(names, "=", None, of.place(node))


def _chain(node: ast.expr) -> tuple[str, ...]:
    """("m", "weight", "data") of m.weight.data and of m.weight.data[1:]; () of anything else."""
    while isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute) and (before := _chain(node.value)):
        return (*before, node.attr)
    return ()


def _numbers(call: ast.Call) -> tuple[float, ...] | None:
    """The arguments of a call, None where one is no number that is spelled out."""
    given = {k.arg: k.value for k in call.keywords}
    values = [*call.args, *(given.pop(name) for name in ("mean", "from", "std", "to", "value") if name in given)]
    try:
        found = [ast.literal_eval(value) for value in values]
    except ValueError:
        return None
    return None if given or not all(isinstance(v, (int, float)) for v in found) else tuple(map(float, found))
