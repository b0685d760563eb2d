"""Weights that a script draws itself: torch.randn(...) as a plain tensor or in nn.Parameter, scaled where it is drawn."""
from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, LayerRow
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.flows import origins
from gradcheck_doctor.treatments.tree import Tree

LIBRARY = ("Linear", "Conv1d", "Conv2d", "Conv3d")
MAKERS = ("randn", "rand", "full", "ones", "zeros", "empty")
FILLED = ("normal_", "uniform_", "trunc_normal_", "fill_", "mul_", "div_", "mul", "div")
MULTIPLY = ("matmul", "mm", "bmm")


@dataclass(frozen=True)
class Draw:
    """torch.randn(rows, columns), or a tensor of equal elements, with the factors around it; `fan` is the axis that is summed over."""

    tree: Tree
    call: ast.Call
    whole: ast.expr
    fan: int

    @property
    def size(self) -> list[str]:
        """Source of the two sizes.

        Raises:
            TreatmentRefused: they are not two expressions in the call.
        """
        first = self.call.args[0] if self.call.args else None
        sizes = list(first.elts) if isinstance(first, (ast.Tuple, ast.List)) else self.call.args
        if len(sizes) != 2 or any(isinstance(a, ast.Starred) for a in sizes):
            raise TreatmentRefused(f"the two sizes can't be read from {self.tree.source(self.call)!r}; scale it by hand, for LeCun by 1 / fan_in**0.5")
        return [self.tree.source(a) if isinstance(a, (ast.Name, ast.Attribute, ast.Constant)) else f"({self.tree.source(a)})" for a in sizes]

    def scaled(self, scheme: str, slope: float) -> Edit:
        """The draw with the standard deviation of a scheme; a factor that stood there goes."""
        fan_in = self.size[self.fan]
        if scheme.startswith("glorot"):
            factor = f" * (2 / ({' + '.join(self.size)}))**0.5"
        elif scheme.startswith("he"):
            factor = f" * (2 / {fan_in})**0.5" if not slope else f" * (2 / ((1 + {slope:g}**2) * {fan_in}))**0.5"
        else:
            factor = f" / {fan_in}**0.5"
        return self._written(lambda drawn: drawn + factor)

    def orthogonal(self) -> Edit:
        """The draw made orthogonal."""
        return self._written(lambda drawn: f"{self.tree.nn()}init.orthogonal_({drawn})", simple=True)

    def _written(self, make: object, simple: bool = False) -> Edit:
        """`make` of the bare draw, as a leaf that requires gradients where the old one was."""
        assert callable(make)
        text, owner = self.tree.source(self.call), self.tree.source(self.call.func).rpartition(".")
        if owner[2] != "randn":                                     # equal or uniform elements: drawn like the others
            text = f"{owner[0]}{owner[1]}randn({', '.join(self.size)})"
        wanted = next((k for k in self.call.keywords if k.arg == "requires_grad"), None)
        if wanted is not None and owner[2] == "randn":
            kept = [self.tree.source(a) for a in [*self.call.args, *(k for k in self.call.keywords if k is not wanted)]]
            text = f"{self.tree.source(self.call.func)}({', '.join(kept)})"
        new = make(text)
        parent = self.tree.parents[self.whole]
        bare = not isinstance(self.whole, ast.BinOp) and isinstance(parent, (ast.Attribute, ast.BinOp, ast.UnaryOp))      # a product has its brackets
        if not simple and (wanted is not None or bare):
            new = f"({new})"
        return self.tree.replace(self.whole, new + (f".requires_grad_({self.tree.source(wanted.value)})" if wanted is not None else ""))


def draws(context: Context, rows: Iterable[LayerRow]) -> list[Draw]:
    """The draws of the weights that these rows apply, each once."""
    found: dict[ast.Call, Draw] = {}
    for row in rows:
        if row.location is None:
            continue
        tree = context.tree(row.location.file)
        try:
            used = tree.expression(row.location)
        except TreatmentRefused:
            continue
        for name, fan, weight in _weights(tree, used):
            mine = [draw for each in (name, *_run_over(tree, used, name)) for draw in _named(tree, used, each, fan)]
            for draw in mine or _followed(tree, weight, fan):
                found.setdefault(draw.call, draw)
    trained = [draw for draw in found.values() if _trained(draw)]
    return trained or list(found.values())


def _trained(draw: Draw) -> bool:
    """The script says of this draw that it takes a gradient, where it is drawn or by its name; a batch that weights multiply is drawn as well."""
    tree, statement = draw.tree, draw.tree.statement(draw.call)
    text, names = tree.source(statement), set(_targets(tree, statement))
    if "requires_grad" in text or "Parameter(" in text or any(name.startswith("self.") for name in names):
        return True
    for name in _targets(tree, statement):
        names |= _collected(tree, statement, name)
    return any(_marks(tree, node, names) for node in ast.walk(tree.root))


def _marks(tree: Tree, node: ast.AST, names: set[str]) -> bool:
    """`W.requires_grad_()`, `W.requires_grad = True`, or the same in a loop over tensors with W among them."""
    if not isinstance(node, ast.Attribute) or not node.attr.startswith("requires_grad"):
        return False
    owner = tree.source(node.value)
    loops = [g for a in tree.up(node) for g in ([a] if isinstance(a, ast.For) else getattr(a, "generators", []))]
    return owner in names or any(tree.source(n) in names for g in loops if tree.source(g.target) == owner for n in ast.walk(g.iter)
                                 if isinstance(n, (ast.Name, ast.Attribute)))


def is_own_layer(tree: Tree, node: ast.expr) -> ast.ClassDef | None:
    """The class of a layer with parameters of its own: defined in this file, not derived from a layer of torch.nn."""
    name = tree.source(node.func) if isinstance(node, ast.Call) else ""
    seen = set()
    found: ast.ClassDef | None = None
    while name and name not in seen:
        seen.add(name)
        owner = next((n for n in ast.walk(tree.root) if isinstance(n, ast.ClassDef) and n.name == name), None)
        if owner is None:
            return None if name.rpartition(".")[2] in LIBRARY else found
        found = found or owner
        name = tree.source(owner.bases[0]) if owner.bases else ""
    return found


def _followed(tree: Tree, weight: ast.expr, fan: int) -> Iterator[Draw]:
    """The draws where a weight gets its value, however it is handed on: self.p["w"] of {"w": w} with w = torch.randn(...)."""
    for origin in origins(tree, weight):
        for call in ast.walk(origin):
            if isinstance(call, ast.Call) and tree.source(call.func).rpartition(".")[2] in MAKERS:
                yield Draw(tree, call, _factors(tree, call), fan)


def _weights(tree: Tree, used: ast.expr) -> Iterator[tuple[str, int, ast.expr]]:
    """(name of the weight, axis of its fan-in, the expression) of `h @ W`, `W @ h`, `F.linear(h, W)`, or of the uses in a layer's class."""
    owner = is_own_layer(tree, used)
    if owner is not None:
        for node in ast.walk(owner):
            if isinstance(node, (ast.BinOp, ast.Call)):
                yield from _operands(tree, node)
    else:
        yield from _operands(tree, used)


def _operands(tree: Tree, node: ast.expr) -> Iterator[tuple[str, int, ast.expr]]:
    name = tree.source(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        yield from _side(tree, node.right, 0)
        yield from _side(tree, node.left, 1)
    elif isinstance(node, ast.Call) and name == "linear" and len(node.args) > 1:
        yield from _side(tree, node.args[1], 1)
    elif isinstance(node, ast.Call) and name in MULTIPLY and node.args:
        yield from _side(tree, node.args[-1], 0)
        left = node.args[0] if len(node.args) > 1 else node.func.value if isinstance(node.func, ast.Attribute) else None
        if left is not None:
            yield from _side(tree, left, 1)


def _side(tree: Tree, node: ast.expr, fan: int) -> Iterator[tuple[str, int, ast.expr]]:
    """A weight, transposed or taken out of a list."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("t", "transpose"):
        node, fan = node.func.value, 1 - fan
    elif isinstance(node, ast.Attribute) and node.attr in ("T", "mT"):
        node, fan = node.value, 1 - fan
    whole = node
    while isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Name) or isinstance(node, ast.Attribute) and tree.source(node.value) == "self":
        yield tree.source(node), fan, whole


def _run_over(tree: Tree, used: ast.expr, name: str) -> Iterator[str]:
    """The lists whose elements, or parts of them, `name` is in a loop around its use: `for i, (w, b) in enumerate(zip(self.weights, self.biases))`."""
    for around in tree.up(used):
        for loop in [around] if isinstance(around, ast.For) else getattr(around, "generators", []):
            for bound, values in _pairs(tree, loop.target, loop.iter):
                while isinstance(values, ast.Subscript):
                    values = values.value
                if bound == name and isinstance(values, (ast.Name, ast.Attribute)):
                    yield tree.source(values)


def _pairs(tree: Tree, target: ast.expr, values: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """(name, what it runs over) of a loop."""
    called = tree.source(values.func) if isinstance(values, ast.Call) else ""
    if isinstance(target, ast.Tuple) and isinstance(values, ast.Call) and called in ("zip", "enumerate"):
        paired = zip(target.elts[called == "enumerate":], values.args, strict=False)
        for part, each in paired:
            yield from _pairs(tree, part, each)
    else:
        yield from ((n.id, values) for n in ast.walk(target) if isinstance(n, ast.Name))


def _named(tree: Tree, used: ast.expr, name: str, fan: int) -> Iterator[Draw]:
    """The draws that a name gets: assigned to it, or put into the list of that name."""
    home = is_own_layer(tree, used) or next((n for n in tree.up(used) if isinstance(n, ast.ClassDef)), None)
    for call in ast.walk(home if name.startswith("self.") and home is not None else tree.root):
        if isinstance(call, ast.Call) and tree.source(call.func).rpartition(".")[2] in MAKERS:
            statement = tree.statement(call)
            goals = _targets(tree, statement)
            if name in goals or len(call.args) != 1 and any(name in _collected(tree, statement, goal) for goal in goals):         # no bias of a list
                yield Draw(tree, call, _factors(tree, call), fan)


def _targets(tree: Tree, statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.Assign):
        return [tree.source(t) for t in statement.targets]
    if isinstance(statement, (ast.AnnAssign, ast.AugAssign)):
        return [tree.source(statement.target)]
    value = statement.value if isinstance(statement, ast.Expr) else None
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in ("append", "extend"):
        return [tree.source(value.func.value)]
    return []


def _collected(tree: Tree, drawn: ast.stmt, goal: str) -> set[str]:
    """The lists that `goal` is put into in the function of the draw: `params += [W, b]`, `params.append(W)`, `params = [W, b]`."""
    found = set()
    for node in ast.walk(tree.function(drawn) or tree.root):
        if isinstance(node, ast.Name) and node.id == goal and isinstance(node.ctx, ast.Load):
            around = tree.parents[node]
            if isinstance(around, (ast.List, ast.Tuple)) or isinstance(around, ast.Call) and tree.source(around.func).endswith(".append"):
                found.update(_targets(tree, tree.statement(node)))
    return found


def _factors(tree: Tree, call: ast.Call) -> ast.expr:
    """The draw with what it is multiplied or divided by, or filled with: `torch.empty(i, o).normal_(0, 0.01)`."""
    whole: ast.expr = call
    for around in tree.up(call):
        filled = isinstance(around, ast.Attribute) and around.attr in FILLED or isinstance(around, ast.Call) and around.func is whole
        scaled = isinstance(around, ast.BinOp) and isinstance(around.op, (ast.Mult, ast.Div)) and not (isinstance(around.op, ast.Div) and around.right is whole)
        if not isinstance(around, ast.expr) or not filled and not scaled:
            break
        whole = around
    return whole
