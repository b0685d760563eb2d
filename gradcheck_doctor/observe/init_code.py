"""Initialisation that the user wrote, against what ran: drawn twice, written but never run, undone by a later layer.

Nothing is concluded here: the facts go to `Recording.notes`, and only where the model was built under our eyes.
"""
from __future__ import annotations

import ast
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from gradcheck_doctor.observe.provenance import Application, ConstructionLog
from gradcheck_doctor.observe.source import class_file, source, user_files
from gradcheck_doctor.records.sites import Span

DRAWS = frozenset({"uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_", "orthogonal_",
                   "sparse_"})
OWN_MEANS = frozenset({*DRAWS, "copy_", "apply_", "exponential_", "cauchy_", "random_"})     # methods that draw without nn.init
CONVENTIONAL = re.compile(r"_*(init|initiali[sz]e|reset)_(all_)?(weight|param|parameter|layer|module|model)s?|_*weights?_init\w*")
WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd, nn.Bilinear)
HARMLESS_DECORATORS = frozenset({"staticmethod", "classmethod", "torch.no_grad()", "torch.no_grad", "no_grad()"})
KNOWN_BASES = frozenset({"torch", "lightning", "pytorch_lightning", "lightning_fabric", "builtins", "abc", "typing"})


@dataclass(frozen=True)
class InitFunction:
    """One function or method of the user's that calls nn.init."""

    name: str
    owner: str                                # class, "" for a plain function
    span: Span
    end_line: int
    draws: tuple[tuple[str, Mapping[str, Any]], ...]     # nn.init calls that draw weights, with their literal arguments
    looks_for: tuple[str, ...]                # types and words its tests name
    own_means: bool                           # also draws weights without nn.init, so whether it ran can't be told
    on_data: bool                             # draws through `.data`, so the values and not the parameters are known
    decorated: bool


def init_functions(file: str) -> Iterator[InitFunction]:
    """Functions at module level and methods, of one file, that draw weights with nn.init."""
    of = source(file)
    for node in of.tree.body if of is not None else ():
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        for member in members:
            if isinstance(member, ast.FunctionDef) and (draws := tuple(_draws(member))):
                yield InitFunction(
                    member.name, node.name if isinstance(node, ast.ClassDef) else "", Span(file, member.lineno, member.col_offset + 1),
                    member.end_lineno or member.lineno, draws, tuple(dict.fromkeys(_looks_for(member))),
                    any(_own_means(n) for n in ast.walk(member)), any(isinstance(n, ast.Attribute) and n.attr == "data" for n in ast.walk(member)),
                    any(ast.unparse(d) not in HARMLESS_DECORATORS for d in member.decorator_list))


def _is_init(function: ast.expr) -> bool:
    """nn.init.xavier_uniform_, init.normal_, or the bare name of one that was imported."""
    if isinstance(function, ast.Name):
        return function.id in DRAWS
    return isinstance(function, ast.Attribute) and function.attr in DRAWS and ast.unparse(function.value).rpartition(".")[2] == "init"


def _own_means(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and (node.attr in OWN_MEANS and not _is_init(node)
                                                or node.attr in ("data", "weight") and isinstance(node.ctx, ast.Store))


def _draws(function: ast.FunctionDef) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and _is_init(node.func) and "sqrt(5)" not in ast.unparse(node):       # a = sqrt(5) is torch's default
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""
            yield name, {k.arg: k.value.value for k in node.keywords if k.arg is not None and isinstance(k.value, ast.Constant)}


def _looks_for(function: ast.FunctionDef) -> Iterator[str]:
    """Names in isinstance and type tests, words compared with a class name."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance" and len(node.args) == 2:
            yield from _type_names(node.args[1])
        elif isinstance(node, ast.Compare):
            for side in (node.left, *node.comparators):
                if "type(" in ast.unparse(node):
                    yield from _type_names(side)
                if isinstance(side, ast.Constant) and isinstance(side.value, str):
                    yield side.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("find", "startswith", "endswith"):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def _type_names(node: ast.expr) -> Iterator[str]:
    for part in node.elts if isinstance(node, ast.Tuple) else [node]:
        if isinstance(part, (ast.Name, ast.Attribute)):
            yield part.id if isinstance(part, ast.Name) else part.attr


# -- drawn twice -------------------------------------------------------------------------------------------------------------------------
def repeated(models: Iterable[nn.Module], log: ConstructionLog | None) -> list[dict[str, Any]]:
    """Parameters drawn again by a call that is no more special than the one before: same call twice, or a general one over a special one.

    A later call that fills fewer parameters than the first is the usual exception to a general rule, and a parameter that several modules hold is
    met by `apply` once for each.
    """
    if log is None:
        return []
    found = []
    for model in models:
        holders = Counter(id(p) for m in _with_repeats(model) for p in m._parameters.values() if p is not None)
        for name, parameter in model.named_parameters():
            sites = [i.span for i in log.initialisations(parameter) if i.span is not None]
            redrawn = [(a, b) for a, b in zip(sites, sites[1:], strict=False) if len(log.init_sites.get(b, ())) >= len(log.init_sites.get(a, ()))]
            if redrawn and holders[id(parameter)] == 1:
                found.append({"parameter": name, "count": 1 + len(redrawn), "first": redrawn[-1][0], "last": redrawn[-1][1]})
    return found


def _with_repeats(model: nn.Module) -> Iterator[nn.Module]:
    return (module for _, module in model.named_modules(remove_duplicate=False))


# -- written, not run --------------------------------------------------------------------------------------------------------------------
def unapplied(models: Iterable[nn.Module], log: ConstructionLog | None) -> list[dict[str, Any]]:
    """Init code that left layers of a model untouched: form, function, where, and the paths of the layers it was meant for."""
    if log is None:
        return []
    found: list[dict[str, Any]] = []
    for model in models:
        if log.modules.get(model) is None:
            continue
        files = user_files([model], log)
        functions = [f for file in files for f in init_functions(file)]
        paths = {id(m): n for n, m in model.named_modules()}
        for made in log.applied:
            function = _function_of(made, functions)
            target = made.module()
            if function is not None and target is not None and id(target) in paths:
                found += _of_application(made, function, target, paths, log)
        found += _never_called(model, files, functions, paths, log)
    return found


def _function_of(made: Application, functions: Iterable[InitFunction]) -> InitFunction | None:
    file, line = os.path.realpath(made.code.co_filename), made.code.co_firstlineno
    return next((f for f in functions if f.name == made.code.co_name and f.span.file == file and f.span.line - 5 <= line <= f.span.line), None)


def _ran(function: InitFunction, log: ConstructionLog) -> set[int]:
    """Addresses of the values that nn.init calls inside `function` filled."""
    return set().union(*(drawn for span, drawn in log.init_sites.items() if _inside(span, function)))


def _inside(span: Span, function: InitFunction) -> bool:
    return function.span.line <= span.line <= function.end_line and os.path.realpath(span.file) == function.span.file


def _of_application(made: Application, function: InitFunction, target: nn.Module, paths: Mapping[int, str], log: ConstructionLog) -> Iterator[dict[str, Any]]:
    drawn = _ran(function, log)
    if not drawn:
        layers = list(_meant(function, target))
        if layers and not function.own_means:
            early = all((log.modules.get(layer) or 0) > made.tick for layer in layers)
            yield _fact("too early" if early else "unmatched", function, made.span, layers, paths)
        return
    done = [m for m in _layers(target) if any(i.span is not None and _inside(i.span, function) for i in log.initialisations(m.weight))
            or function.on_data and m.weight.data_ptr() in drawn]
    kinds, known = {type(m) for m in done}, {id(m) for m in done}
    for layer in _layers(target):
        if type(layer) in kinds and id(layer) not in known and (log.modules.get(layer) or 0) > made.tick:
            yield _fact("replaced", function, log.spans.get(layer), [layer], paths)


def _never_called(model: nn.Module, files: Iterable[str], functions: Iterable[InitFunction], paths: Mapping[int, str],
                  log: ConstructionLog) -> Iterator[dict[str, Any]]:
    """A function with the name of an initialiser that no file of the model mentions but in its definition."""
    for function in functions:
        if not CONVENTIONAL.fullmatch(function.name) or function.own_means or function.decorated or _ran(function, log) or _mentioned(function.name, files):
            continue
        owners = [m for m in model.modules() if _owns(function, m)] if function.owner else [model] if _of_file(model, function.span.file) else []
        layers = list({id(layer): layer for owner in owners for layer in _meant(function, owner)}.values())
        if layers:
            yield _fact("never called", function, function.span, layers, paths)
            return


def _of_file(model: nn.Module, file: str) -> bool:
    defined = class_file(model)
    return defined is None or os.path.realpath(defined) == file


def _owns(function: InitFunction, module: nn.Module) -> bool:
    """Its class defines the method, and no framework stands behind it that may call the method later."""
    mro = type(module).__mro__
    bases = {c.__module__.partition(".")[0] for c in mro}
    local = {c.__module__.partition(".")[0] for c in mro if c.__module__ == type(module).__module__}
    file = class_file(module)
    return (any(c.__name__ == function.owner and function.name in vars(c) for c in mro) and file is not None
            and os.path.realpath(file) == function.span.file and bases <= KNOWN_BASES | local)


def _mentioned(name: str, files: Iterable[str]) -> bool:
    for file in files:
        of = source(file)
        for node in of.nodes if of is not None else ():
            said = node.value if isinstance(node, ast.Constant) else node.name if isinstance(node, ast.alias) else getattr(node, "id", getattr(node, "attr", None))
            if said == name:
                return True
    return False


def _layers(module: nn.Module) -> Iterator[Any]:
    return (m for m in module.modules() if isinstance(m, WEIGHTED) and (weight := m._parameters.get("weight")) is not None and not weight.is_meta)


def _meant(function: InitFunction, module: nn.Module) -> Iterator[Any]:
    """Layers with weights below `module`, unless the function's tests name other kinds of layers only."""
    words = [w.lower() for w in function.looks_for]
    if not words or any(k in w for w in words for k in ("linear", "conv", "weight")):
        yield from _layers(module)


def _fact(form: str, function: InitFunction, span: Span | None, layers: Iterable[nn.Module], paths: Mapping[int, str]) -> dict[str, Any]:
    layers = list(layers)
    return {"form": form, "function": function.name, "defined": function.span.line, "span": span, "draws": [[n, dict(a)] for n, a in function.draws],
            "looks_for": list(function.looks_for), "modules": [paths[id(m)] for m in layers], "types": sorted({type(m).__name__ for m in layers})}
