"""One source file as text and syntax tree: finding nodes by span, making edits that keep every other byte."""
from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.records.sources import decoded, lines_of

GENERATED = re.compile(r"@generated\b|\bdo not (edit|modify)\b|\bauto(matically)?[- ]?generated\b", re.IGNORECASE)
INDENT = "    "


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
        return lines_of(self.text)

    @functools.cached_property
    def starts(self) -> list[int]:
        return _starts(self.lines)

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
        """The text of a node, empty where it has no place of its own."""
        if getattr(node, "end_lineno", None) is None:
            return ""
        return _slice(self.text, self.starts, self.span(node))

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
        """The white space in front of a statement's line; a form feed before it begins a page, not an indentation."""
        line = self.lines[statement.lineno - 1]
        return line[: len(line) - len(line.lstrip(" \t\f"))].rpartition("\f")[2]

    @functools.cached_property
    def unit(self) -> str:
        """What this file indents a block with."""
        for node in ast.walk(self.root):
            body = getattr(node, "body", None)
            if isinstance(node, ast.stmt) and isinstance(body, list) and body and body[0].lineno > node.lineno:
                return self.indent(body[0]).removeprefix(self.indent(node)) or INDENT
        return INDENT

    def block(self, statement: ast.stmt, lines: Iterable[str]) -> str:
        """Lines at a statement's indentation, written with four spaces a level, in this file's own indentation and line ends."""
        rows = []
        for line in lines:
            bare = line.lstrip(" ")
            levels, rest = divmod(len(line) - len(bare), len(INDENT))
            rows.append((self.indent(statement) + self.unit * levels + " " * rest + bare if bare else "") + self.newline)
        return "".join(rows)

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
        """Insert whole lines in front of a statement and its decorators, at its indentation."""
        first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", ()))])
        return Edit(Span(self.file, first, 1, first, 1), self.block(statement, lines))

    def after(self, statement: ast.stmt, lines: Iterable[str]) -> Edit:
        """Insert whole lines behind a statement, at its indentation."""
        end, block = (statement.end_lineno or statement.lineno), self.block(statement, lines)
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
    """Read a file as it is: in its own encoding, newlines kept, without its byte order mark.

    Raises:
        TreatmentRefused: it cannot be read or parsed, or is no source that a person edits.
    """
    if file.endswith(".ipynb"):
        raise TreatmentRefused(f"{file} is a notebook; export it (jupyter nbconvert --to script {file}), fix the script and carry the change over")
    try:
        text = decoded(Path(file).read_bytes())
    except OSError as error:
        raise TreatmentRefused(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise TreatmentRefused(f"{file} cannot be read as Python source: {error}") from error
    if re.search(r"\r(?!\n)", text):
        raise TreatmentRefused(f"{file} has bare carriage returns, which editors, git and Python count as lines differently; convert its line ends first")
    if any(GENERATED.search(line) for line in _head(text)):
        raise TreatmentRefused(f"{file} says that it is generated; change its source instead")
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise TreatmentRefused(f"{file} does not parse: {error}") from error
    return Tree(file, text)


def _head(text: str) -> Iterator[str]:
    """Comments before the first statement, and the docstring's lines."""
    quoted = False
    for line in lines_of(text)[:60]:
        bare = line.strip()
        quotes = bare.count('"""') + bare.count("'''")
        if not (quoted or quotes or bare.startswith("#") or not bare):
            return
        quoted ^= quotes % 2 == 1
        yield line


def _starts(lines: Iterable[str]) -> list[int]:
    """Offset of each line's first character, and of the end."""
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    return starts


def _slice(text: str, starts: list[int], span: Span) -> str:
    begin, end = offsets(starts, span)
    return text[begin:end]


def offsets(starts: list[int], span: Span) -> tuple[int, int]:
    """(begin, end) of a span as character offsets.

    Raises:
        TreatmentRefused: the text has no such place.
    """
    last, column = span.end_line or span.line, span.end_column or span.column
    if not (1 <= span.line <= len(starts) and 1 <= last <= len(starts)):
        raise TreatmentRefused("the file has changed since the report was made")
    begin, end = starts[span.line - 1] + span.column - 1, starts[last - 1] + column - 1
    if not 0 <= begin <= end <= starts[-1]:
        raise TreatmentRefused("the file has changed since the report was made")
    return begin, end


def applied(text: str, edits: Iterable[Edit]) -> str:
    """`text` with the edits made, last first.

    Raises:
        TreatmentRefused: two edits overlap, or the result does not parse.
    """
    starts = _starts(lines_of(text))
    places = sorted(((*offsets(starts, e.span), e.text) for e in dict.fromkeys(edits)), reverse=True)
    for (begin, _, _), (_, end, _) in zip(places, places[1:], strict=False):
        if end > begin:
            raise TreatmentRefused("two edits touch the same expression")
    for begin, end, new in places:
        text = text[:begin] + new + text[end:]
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise TreatmentRefused(f"the edited file would not parse: {error}") from error
    return text
