"""One source file as text and syntax tree: finding nodes by span, making edits that keep every other byte."""
from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.records.sources import decoded, lines_of

GENERATED = re.compile(r"@generated\b|\bdo not (edit|modify)\b|\bauto(matically)?[- ]?generated\b", re.IGNORECASE)
INDENT = "    "
N = TypeVar("N", ast.expr, ast.stmt)


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

    def operand(self, node: ast.expr) -> str:
        """The text of a node in front of which a minus or behind which an attribute can stand."""
        text = self.source(node)
        return text if isinstance(node, (ast.Name, ast.Attribute, ast.Call, ast.Subscript)) else f"({text})"

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

    def expression(self, span: Span | None) -> ast.expr:
        """The outermost expression that `span` is exactly.

        Raises:
            TreatmentRefused: there is none.
        """
        if (node := self.find(span, ast.expr)) is not None:
            return node
        raise TreatmentRefused("the expression could not be found in the source")

    def find(self, span: Span | None, kind: type[N]) -> N | None:
        """The outermost node of a kind that `span` is exactly."""
        for node in ast.walk(self.root):
            if span is not None and isinstance(node, kind) and (node.lineno, node.end_lineno) == (span.line, span.end_line) and self.span(node) == span:
                return node
        return None

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

    def among(self, statement: ast.stmt) -> list[ast.stmt]:
        """The statements among which `statement` stands."""
        parent = self.parents[statement]
        blocks = (getattr(parent, name, None) for name in ("body", "orelse", "finalbody", "handlers"))
        return next(b for b in blocks if isinstance(b, list) and statement in b)

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
        """Insert whole lines in front of a statement and its decorators, at its indentation; `a; b` gets one more statement."""
        first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", ()))])
        here = self.span(statement)
        if first == statement.lineno and self.lines[first - 1][: here.column - 1].strip():
            return Edit(Span(self.file, first, here.column, first, here.column), self._inline(statement, lines) + "; ")
        return Edit(Span(self.file, first, 1, first, 1), self.block(statement, lines))

    def after(self, statement: ast.stmt, lines: Iterable[str]) -> Edit:
        """Insert whole lines behind a statement, at its indentation; `a; b` gets one more statement."""
        end, here = (statement.end_lineno or statement.lineno), self.span(statement)
        column = here.end_column or 1
        if self.lines[end - 1][column - 1:].lstrip().startswith(";") or self.lines[statement.lineno - 1][: here.column - 1].strip():
            return Edit(Span(self.file, end, column, end, column), "; " + self._inline(statement, lines))
        block = self.block(statement, lines)
        if end >= len(self.lines) and not self.text.endswith("\n"):
            return Edit(Span(self.file, end, len(self.lines[-1]) + 1, end, len(self.lines[-1]) + 1), self.newline + block.rstrip("\r\n"))
        return Edit(Span(self.file, end + 1, 1, end + 1, 1), block)

    def _inline(self, statement: ast.stmt, lines: Iterable[str]) -> str:
        """Simple statements for a line that others share."""
        rows = list(lines)
        if any(row.startswith(" ") or row.endswith(":") for row in rows):
            raise TreatmentRefused(f"line {statement.lineno} holds several statements; give each its own line and write there:\n" + "\n".join(rows))
        return "; ".join(rows)

    @property
    def newline(self) -> str:
        return "\r\n" if self.lines and self.lines[0].endswith("\r\n") else "\n"

    @functools.cached_property
    def imported(self) -> dict[str, str]:
        """Modules of torch that this file names at its top level, by what they are called here; `torch.nn.*` is a star import."""
        found: dict[str, str] = {}
        for node in _top_level(self.root.body):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    found.setdefault(*((alias.name, alias.asname) if alias.asname else (alias.name.partition(".")[0],) * 2))
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    found.setdefault(f"{node.module}.{alias.name}", alias.asname or alias.name)
        return found

    def torch(self) -> str:
        """What stands in front of names of torch in this file."""
        return f"{self.imported.get('torch', 'torch')}."

    def nn(self) -> str:
        """What stands in front of names of torch.nn in this file."""
        if "torch.nn" in self.imported:
            return f"{self.imported['torch.nn']}."
        return "" if "torch.nn.*" in self.imported else f"{self.torch()}nn."

    def functional(self) -> str:
        """What stands in front of names of torch.nn.functional in this file."""
        return f"{self.imported['torch.nn.functional']}." if "torch.nn.functional" in self.imported else f"{self.nn()}functional."

    def with_imports(self, edits: Iterable[Edit]) -> list[Edit]:
        """The edits, and `import torch` where they name it and the file does not."""
        edits = list(edits)
        if "torch" in self.imported or not any(re.search(r"(?<![\w.])torch\.", e.text) for e in edits if e.span.file == self.file):
            return edits
        body = self.root.body
        start = 1 if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) else 0
        while start < len(body) and isinstance(body[start], ast.ImportFrom) and body[start].module == "__future__":   # type: ignore[attr-defined]
            start += 1
        imports = [n for n in body[start:] if isinstance(n, (ast.Import, ast.ImportFrom))]
        mine = [n for n in imports if "torch" in self.source(n)]
        return [self.before((mine or imports or body[start:])[0], ["import torch"]), *edits]


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run on import, those in `if` and `try` too."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            yield from _top_level([*node.body, *node.orelse, *getattr(node, "finalbody", [])])


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
    """`text` with the edits made, last first; an edit inside another one is made in that one's text.

    Raises:
        TreatmentRefused: two edits contradict each other, or the result does not parse.
    """
    starts = _starts(lines_of(text))
    places = _nested(text, [(*offsets(starts, e.span), e.text) for e in dict.fromkeys(edits)])
    for begin, end, new in sorted(places, key=lambda p: p[:2], reverse=True):
        text = text[:begin] + new + text[end:]
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise TreatmentRefused(f"the edited file would not parse: {error}") from error
    return text


def _nested(text: str, places: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Edits side by side: insertions at one place joined in their order, inner edits carried out in the text of the outer ones."""
    kept: list[tuple[int, int, str]] = []
    for begin, end, new in sorted(places, key=lambda p: (p[1] - p[0])):            # the innermost first; sorted keeps the order of equals
        inner = [p for p in kept if begin <= p[0] and p[1] <= end and (p[1] > begin and p[0] < end or begin == end == p[0] == p[1])]
        for place in sorted(inner, reverse=True):
            if begin == end:
                new = place[2] + new
            elif (begin, end) != place[:2] and place[0] < place[1]:
                old = text[place[0]:place[1]]
                if new.count(old) != 1:
                    raise TreatmentRefused("two edits touch the same expression")
                new = new.replace(old, place[2])
            else:
                raise TreatmentRefused("two edits touch the same expression")
            kept.remove(place)
        if any(begin < p[1] and p[0] < end for p in kept):
            raise TreatmentRefused("two edits touch the same expression")
        kept.append((begin, end, new))
    return kept
