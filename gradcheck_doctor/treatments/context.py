"""What planners know: the files, where each module was built, which optimizer steps where."""
from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, LayerRow, Prescription
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.treatments.tree import Tree, read

Planner = Callable[["Context", Finding, Prescription], list[Edit]]


@dataclass
class Context:
    """Facts of one report. `file` is the script or model file the edits default to."""

    file: str
    layers: tuple[LayerRow, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    trees: dict[str, Tree] = field(default_factory=dict)

    def tree(self, file: str | None = None) -> Tree:
        name = file or self.file
        if name not in self.trees:
            self.trees[name] = read(name)
        return self.trees[name]

    def rows(self, modules: tuple[str, ...]) -> list[LayerRow]:
        """Rows of the layer table for these module paths."""
        return [row for row in self.layers if row.module in modules]

    def built(self, modules: tuple[str, ...], ops: tuple[str, ...] = ()) -> list[Span]:
        """Distinct expressions that built (or called) these modules."""
        spans = [row.location for row in self.rows(modules) if row.location is not None and (not ops or row.op in ops)]
        return list(dict.fromkeys(spans))

    def optimizer_call(self, tree: Tree) -> ast.Call:
        """The (last) construction of a torch optimizer in a file.

        Raises:
            TreatmentRefused: there is none.
        """
        names = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax", "Adadelta", "LBFGS")
        calls = [n for n in ast.walk(tree.root) if isinstance(n, ast.Call) and tree.source(n.func).rpartition(".")[2] in names]
        if not calls:
            raise TreatmentRefused("no optimizer is constructed in this file")
        return max(calls, key=lambda n: n.lineno)


def number(value: float) -> str:
    """A number as people write it: three digits, 1e-7 rather than 1e-07.

    >>> number(1e-7), number(0.000769231), number(0.05)
    ('1e-7', '0.000769', '0.05')
    """
    return re.sub(r"e([+-])0+", r"e\1", f"{value:.3g}")


def constant(tree: Tree, node: ast.expr, value: str) -> Edit:
    """Set the number behind an expression: a literal, or the default, assignment or argparse default that a name goes back to.

    Raises:
        TreatmentRefused: it can't be told where the number comes from.
    """
    if isinstance(node, (ast.Constant, ast.UnaryOp)):
        return tree.replace(node, value)
    entry = _entry(tree, node)
    if entry is not None:
        return tree.replace(entry, value)
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
    if name is not None:
        found = _definitions(tree, name)
        if len(found) == 1:
            return tree.replace(found[0], value)
    raise TreatmentRefused(f"it can't be told where {tree.source(node)!r} gets its value; set it to {value} there")


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


def _definitions(tree: Tree, name: str) -> list[ast.expr]:
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
        elif isinstance(node, ast.Call) and tree.source(node.func).endswith("add_argument") and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and str(first.value).lstrip("-").replace("-", "_") == name:
                found += [k.value for k in node.keywords if k.arg == "default" and isinstance(k.value, ast.Constant)]
        elif isinstance(node, ast.keyword) and node.arg == name and isinstance(node.value, ast.Constant):
            owner = tree.parents.get(node)
            if isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name) and owner.func.id in _local_names(tree):
                found.append(node.value)
    return found


def _local_names(tree: Tree) -> set[str]:
    return {n.name for n in ast.walk(tree.root) if isinstance(n, (ast.FunctionDef, ast.ClassDef))} | {"dict", "SimpleNamespace", "Namespace"}
