"""What planners know: the files, where each module was built, which optimizer steps where."""
from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, LayerRow, Prescription
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.treatments.numbers import constant as constant  # where packs of rules find it
from gradcheck_doctor.treatments.tree import Tree, read

Planner = Callable[["Context", Finding, Prescription], list[Edit]]
OPTIMIZERS = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax", "Adadelta", "LBFGS")


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

    def tree_of(self, span: Span | None) -> Tree:
        """The file that a place lies in, by default the script's."""
        return self.tree(span.file if span is not None else None)

    def rows(self, modules: tuple[str, ...]) -> list[LayerRow]:
        """Rows of the layer table for these module paths."""
        return [row for row in self.layers if row.module in modules]

    def built(self, modules: tuple[str, ...], ops: tuple[str, ...] = ()) -> list[Span]:
        """Distinct expressions that built (or called) these modules."""
        spans = [row.location for row in self.rows(modules) if row.location is not None and (not ops or row.op in ops)]
        return list(dict.fromkeys(spans))

    def optimizer_calls(self, tree: Tree) -> list[ast.Call]:
        """The constructions of torch optimizers in a file, in the order of the source."""
        calls = [n for n in ast.walk(tree.root) if isinstance(n, ast.Call) and tree.source(n.func).rpartition(".")[2] in OPTIMIZERS]
        return sorted(calls, key=lambda n: n.lineno)

    def optimizer_call(self, tree: Tree) -> ast.Call:
        """The (last) construction of a torch optimizer in a file.

        Raises:
            TreatmentRefused: there is none.
        """
        calls = self.optimizer_calls(tree)
        if not calls:
            raise TreatmentRefused("no optimizer is constructed in this file")
        return max(calls, key=lambda n: n.lineno)
