"""One source file as text and syntax tree: finding nodes by span, making edits that keep every other byte."""
from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit
from gradcheck_doctor.records.sites import Span


@dataclass(frozen=True)
class Tree:
    """A parsed file. Positions are 1-based and count characters, as spans do."""

    file: str
    text: str

    @functools.cached_property
    def root(self) -> ast.Module:
        return ast.parse(self.text)

    @functools.cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines(keepends=True)

    @functools.cached_property
    def parents(self) -> dict[ast.AST, ast.AST]:
        return {child: node for node in ast.walk(self.root) for child in ast.iter_child_nodes(node)}

    def span(self, node: ast.AST) -> Span:
        """Where a node stands."""
        line, end = node.lineno, node.end_lineno                                 # type: ignore[attr-defined]
        return Span(self.file, line, self._characters(line, node.col_offset) + 1, end,   # type: ignore[attr-defined]
                    self._characters(end, node.end_col_offset) + 1)              # type: ignore[attr-defined]

    def _characters(self, line: int, offset: int) -> int:
        return len(self.lines[line - 1].encode()[:offset].decode(errors="ignore"))

    def source(self, node: ast.AST) -> str:
        """The text of a node."""
        return ast.get_source_segment(self.text, node) or ""

    def call(self, span: Span | None) -> ast.Call:
        """The call that `span` is exactly.

        Raises:
            TreatmentRefused: there is none.
        """
        for node in ast.walk(self.root):
            if span is not None and isinstance(node, ast.Call) and (node.lineno, self.span(node).column) == (span.line, span.column):
                here = self.span(node)
                if span.end_line is None or (here.end_line, here.end_column) == (span.end_line, span.end_column):
                    return node
        raise TreatmentRefused("the call could not be found in the source")

    def up(self, node: ast.AST) -> Iterator[ast.AST]:
        """The nodes around `node`, the nearest first."""
        while node in self.parents:
            node = self.parents[node]
            yield node

    def statement(self, node: ast.AST) -> ast.stmt:
        """The statement that contains `node`."""
        if isinstance(node, ast.stmt):
            return node
        return next(n for n in self.up(node) if isinstance(n, ast.stmt))

    def function(self, node: ast.AST) -> ast.FunctionDef | None:
        return next((n for n in self.up(node) if isinstance(n, ast.FunctionDef)), None)

    def indent(self, statement: ast.stmt) -> str:
        line = self.lines[statement.lineno - 1]
        return line[: len(line) - len(line.lstrip())]

    def replace(self, node: ast.AST, text: str) -> Edit:
        return Edit(self.span(node), text)

    def keyword(self, node: ast.Call, text: str) -> Edit:
        """Add a keyword argument behind the last argument of a call."""
        last = [*node.args, *(k.value for k in node.keywords)]
        if not last:
            whole = self.span(node)
            return Edit(Span(whole.file, whole.end_line or whole.line, (whole.end_column or 1) - 1, whole.end_line, (whole.end_column or 1) - 1), text)
        place = self.span(max(last, key=lambda n: (n.end_lineno or 0, n.end_col_offset or 0)))
        return Edit(Span(place.file, place.end_line or place.line, place.end_column or 1, place.end_line, place.end_column), f", {text}")

    def siblings(self, node: ast.AST) -> list[ast.expr]:
        """The arguments or elements among which a node stands."""
        parent = self.parents.get(node)
        if isinstance(parent, ast.Call) and node in parent.args:
            return list(parent.args)
        return list(parent.elts) if isinstance(parent, (ast.List, ast.Tuple)) else []

    def before(self, statement: ast.stmt, lines: Iterable[str]) -> Edit:
        """Insert whole lines in front of a statement, at its indentation."""
        indent = self.indent(statement)
        place = Span(self.file, statement.lineno, 1, statement.lineno, 1)
        return Edit(place, "".join(f"{indent}{line}{self.newline}" for line in lines))

    def after(self, statement: ast.stmt, lines: Iterable[str]) -> Edit:
        """Insert whole lines behind a statement, at its indentation."""
        indent, end = self.indent(statement), (statement.end_lineno or statement.lineno)
        block = "".join(f"{indent}{line}{self.newline}" for line in lines)
        if end >= len(self.lines) and not self.text.endswith("\n"):
            return Edit(Span(self.file, end, len(self.lines[-1]) + 1, end, len(self.lines[-1]) + 1), self.newline + block.rstrip("\r\n"))
        return Edit(Span(self.file, end + 1, 1, end + 1, 1), block)

    @property
    def newline(self) -> str:
        return "\r\n" if self.lines and self.lines[0].endswith("\r\n") else "\n"

    def nn(self) -> str:
        """What stands in front of names of torch.nn in this file."""
        for node in self.root.body:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name == "torch.nn" and alias.asname:
                        return f"{alias.asname}."
            if isinstance(node, ast.ImportFrom) and node.module == "torch":
                for alias in node.names:
                    if alias.name == "nn":
                        return f"{alias.asname or 'nn'}."
            if isinstance(node, ast.ImportFrom) and node.module == "torch.nn" and any(a.name == "*" for a in node.names):
                return ""
        return "torch.nn."


def read(file: str) -> Tree:
    """Read a file as it is, newlines kept.

    Raises:
        TreatmentRefused: it cannot be read or parsed, or says that it is generated.
    """
    try:
        with open(file, encoding="utf-8", newline="") as stream:
            text = stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise TreatmentRefused(f"{file} cannot be read as UTF-8: {error}") from error
    if text.startswith("\ufeff"):
        raise TreatmentRefused(f"{file} starts with a byte order mark; remove it first")
    if "@generated" in text[:2000] or "DO NOT EDIT" in text[:2000]:
        raise TreatmentRefused(f"{file} says that it is generated; change its source instead")
    tree = Tree(file, text)
    try:
        ast.parse(text)
    except SyntaxError as error:
        raise TreatmentRefused(f"{file} does not parse: {error}") from error
    return tree


def applied(text: str, edits: Iterable[Edit]) -> str:
    """`text` with the edits made, last first.

    Raises:
        TreatmentRefused: two edits overlap, or the result does not parse.
    """
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    unique = list(dict.fromkeys(edits))
    places = sorted(((starts[e.span.line - 1] + e.span.column - 1, starts[(e.span.end_line or e.span.line) - 1] + (e.span.end_column or e.span.column) - 1, e.text)
                     for e in unique), reverse=True)
    for (begin, _, _), (_, end, _) in zip(places, places[1:], strict=False):
        if end > begin:
            raise TreatmentRefused("two edits touch the same expression")
    for begin, end, new in places:
        text = text[:begin] + new + text[end:]
    try:
        ast.parse(text)
    except SyntaxError as error:
        raise TreatmentRefused(f"the edited file would not parse: {error}") from error
    return text
