"""Layers in plain Python containers become visible (nn.ModuleList, nn.ModuleDict), weights get the names under which the model knows them."""
from __future__ import annotations

import ast
import contextlib

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.treatments.calls import argument
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.tree import Tree

LISTS, DICTS = (ast.List, ast.ListComp), (ast.Dict, ast.DictComp)


def register_modules(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """A plain list or dictionary of layers becomes a module; where a function makes the layers, that which its results go into."""
    if finding.location is None:
        raise TreatmentRefused("it is not known where the layers were built")
    edits = _registered(context.tree(finding.location.file), finding.location)
    for span in context.built(prescription.modules):
        with contextlib.suppress(TreatmentRefused):                     # a layer inside one that is in the list
            edits += _registered(context.tree(span.file), span)
    return list(dict.fromkeys(edits))


def _registered(tree: Tree, span: Span) -> list[Edit]:
    """The container that what is built at `span` goes into."""
    node: ast.AST = tree.call(span)
    for _ in range(3):
        for around in tree.up(node):
            if isinstance(around, (*LISTS, *DICTS)) and isinstance(tree.parents[around], ast.Assign):
                return [tree.replace(around, f"{tree.nn()}{_container(tree, around)}({tree.source(around)})")]
            if isinstance(around, ast.Call) and isinstance(around.func, ast.Attribute) and around.func.attr == "append":
                return _grown(tree, around.func.value, ast.List, "ModuleList")
            if isinstance(around, ast.Assign) and isinstance(around.targets[0], ast.Subscript):
                _named(tree, [around.targets[0].slice])
                return _grown(tree, around.targets[0].value, ast.Dict, "ModuleDict")
        function = tree.function(node)
        calls = [n for n in ast.walk(tree.root) if function is not None and isinstance(n, ast.Call) and tree.source(n.func).rpartition(".")[2] == function.name]
        if len(calls) != 1:
            break
        node = calls[0]
    raise TreatmentRefused("the layers are in no literal of a list or dictionary; keep them in an nn.ModuleList or nn.ModuleDict")


def _container(tree: Tree, made: ast.AST) -> str:
    if isinstance(made, ast.Dict):
        _named(tree, made.keys)
    elif isinstance(made, ast.DictComp):
        _named(tree, [made.key])
    return "ModuleDict" if isinstance(made, DICTS) else "ModuleList"


def _named(tree: Tree, keys: list[ast.expr | None] | list[ast.expr]) -> None:
    """nn.ModuleDict takes names only."""
    for key in keys:
        text = isinstance(key, ast.JoinedStr) or isinstance(key, ast.Call) and tree.source(key.func) == "str"
        if not text and not _is_name(key) and not (isinstance(key, ast.Name) and _runs_over_names(tree, key)):
            raise TreatmentRefused(f"nn.ModuleDict takes strings as keys, and it can't be told whether {'**' if key is None else tree.source(key)!r} is one; "
                                   "keep the layers in an nn.ModuleDict with str(key)")


def _is_name(key: ast.expr | None) -> bool:
    return isinstance(key, ast.Constant) and isinstance(key.value, str) and "." not in key.value


def _runs_over_names(tree: Tree, key: ast.Name) -> bool:
    """A loop or comprehension gives `key` the keys of a dictionary of names, or the names of a list, written in this file."""
    for around in tree.up(key):
        for part in getattr(around, "generators", [around] if isinstance(around, ast.For) else []):
            over, first = part.iter, part.target
            if isinstance(over, ast.Call) and isinstance(over.func, ast.Attribute) and over.func.attr in ("items", "keys"):
                first = first.elts[0] if over.func.attr == "items" and isinstance(first, ast.Tuple) else first
                over = over.func.value
            if isinstance(first, ast.Name) and first.id == key.id:
                made = [n.value for n in ast.walk(tree.root) if isinstance(n, ast.Assign) and [tree.source(t) for t in n.targets] == [tree.source(over)]]
                written = made[0] if len(made) == 1 else over
                names = written.keys if isinstance(written, ast.Dict) else written.elts if isinstance(written, (ast.List, ast.Tuple)) else []
                return bool(names) and all(map(_is_name, names))
    return False


def _grown(tree: Tree, owner: ast.expr, kind: type[ast.List | ast.Dict], container: str) -> list[Edit]:
    """self.parts = [] in front of self.parts.append(...), self.parts = {} in front of self.parts[name] = ..."""
    made = [n.value for n in ast.walk(tree.root) if isinstance(n, ast.Assign) and any(tree.source(t) == tree.source(owner) for t in n.targets)]
    empty = len(made) == 1 and isinstance(made[0], kind) and not (made[0].elts if isinstance(made[0], ast.List) else made[0].keys)
    if empty and tree.source(owner).startswith("self."):
        return [tree.replace(made[0], f"{tree.nn()}{container}()")]
    raise TreatmentRefused(f"keep the layers in {tree.source(owner)} = {tree.nn()}{container}()")


def rename_keys(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """load_state_dict(weights) gets the same weights under the names that the model has."""
    tree = context.tree_of(prescription.span)
    weights = argument(tree.call(prescription.span), "state_dict", 0)
    if weights is None:
        raise TreatmentRefused("load_state_dict is not called there; rename the weights where it is")
    old, new = str(prescription.arguments["old"]), str(prescription.arguments["new"])
    name = f'name.replace("{old}", "{new}", 1)' if old and new else f'name.removeprefix("{old}")' if old else f'f"{new}{{name}}"'
    return [tree.replace(weights, f"{{{name}: value for name, value in {tree.operand(weights)}.items()}}")]


PLANNERS = {"register-modules": register_modules, "rename-keys": rename_keys}
