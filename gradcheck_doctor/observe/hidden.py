"""What comes back into the forward pass by a way that carries no gradient: made under no_grad, picked by an index or a comparison, taken out with .data.

Followed on the steps that are read in full (the first of each phase), by tensor and not by value: it costs nothing later.
"""
from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from gradcheck_doctor.observe.graph import Graph, Node, gather
from gradcheck_doctor.observe.names import LEAVES
from gradcheck_doctor.observe.source import without_gradients
from gradcheck_doctor.records.sites import Span

if TYPE_CHECKING:
    from gradcheck_doctor.observe.build import ParameterBook
    from gradcheck_doctor.observe.observer import Observer


class Cut(NamedTuple):
    """Where the gradient ends: the call, and the operation or the module whose value went in."""

    op: str
    span: Span | None
    maker: int = -1
    module: int = 0                              # id of a module that ran under no_grad


MOST = 1_000           # values without a gradient that are looked into


class Hidden:
    """Which tensors stem from values that get no gradient through them, and which operations take them in."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.taken: dict[int, set[Cut]] = {}     # by index of the operation that takes them in
        self._outside: list[tuple[int, frozenset[Cut]]] = []       # values that left torch on this pass: how many samples, what they stem from
        self._entered: set[int] = set()          # inputs from outside that were met on this pass
        self._cuts: dict[int, tuple[weakref.ref[Tensor], frozenset[Cut]]] = {}

    def begin_pass(self) -> None:
        self._cuts.clear()
        self._outside.clear()
        self._entered.clear()

    def made(self, op: str, inputs: list[Tensor], outputs: Iterable[Tensor], place: Callable[[], Span | None]) -> None:
        """`op` made `outputs` of `inputs`, and no gradient goes that way; `place` finds out where."""
        makers = {maker for t in inputs if (maker := self.graph.maker(t)) is not None}
        span = place() if makers else None
        cuts = self._behind(inputs) | {Cut(op, span, maker) for maker in makers}
        self._hide(outputs, cuts)
        if op in LEAVES and cuts and inputs[0].dim():
            self._outside.append((len(inputs[0]), cuts))

    def returned(self, value: Any) -> None:
        """A tensor was made of numbers from outside: with as many samples as values that left on this pass, it is taken for theirs."""
        if self._outside and isinstance(value, Tensor) and value.dim() and value.is_floating_point():
            self._hide([value], frozenset(cut for samples, cuts in self._outside if samples == len(value) for cut in cuts))

    def ran(self, module: nn.Module, span: Span | None, args: Any, output: Any) -> None:
        """A module with parameters ran under no_grad; those inside it are part of it."""
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []
        gather((args,), inputs)
        gather((output,), outputs)
        own = {Cut("no_grad", span, module=id(module))} if next(module.parameters(), None) is not None else set()
        self._hide(outputs, self._behind(inputs) | own)

    def arrived(self, node: Node, inputs: list[Tensor]) -> None:
        """An operation that is recorded takes these in."""
        for value in inputs:
            maker = self.graph.maker(value)
            if maker is not None and self.graph.nodes[maker].op == "input" and maker not in self._entered:
                self._entered.add(maker)
                if self._outside and value is inputs[0] and node.category in ("layer", "recurrent"):
                    self.returned(value)                        # torch.from_numpy can't be seen
        cuts = self._behind(inputs)
        if cuts:
            self.taken.setdefault(node.index, set()).update(cuts)

    def _hide(self, outputs: Iterable[Tensor], cuts: frozenset[Cut]) -> None:
        if cuts:
            self._cuts |= {id(t): (weakref.ref(t), cuts) for t in outputs}

    def _behind(self, tensors: Iterable[Tensor]) -> frozenset[Cut]:
        rows = (self._cuts.get(id(t)) for t in tensors)
        return frozenset(cut for row in rows if row is not None and row[0]() is not None for cut in row[1])


def rows(observer: Observer, book: ParameterBook, keep: set[int]) -> list[dict[str, Any]]:
    """Of each value that comes back without a gradient and goes into one of the operations in `keep`: by which call, to which operation, whose parameters.

    Not of values that reach the loss by another way as well."""
    modules = {id(m): m for m in observer.roots.known()}
    looked = 0
    number = {index: place for place, index in enumerate(sorted(keep))}
    found = []
    for index, cuts in sorted(observer.hidden.taken.items()):
        for cut in sorted((c for c in cuts if c.maker not in keep), key=lambda c: (c.maker, c.op)) if index in keep and looked < MOST else ():
            looked += 1
            if cut.module:
                held: list[Tensor] = list(modules[cut.module].parameters()) if cut.module in modules else []
            else:
                held = [p for i in observer.graph.ancestors(cut.maker) - keep for p in observer.graph.nodes[i].parameters]
            names = tuple(dict.fromkeys(book.records[id(p)][1].name for p in held if id(p) in book.records))
            if names:
                block = without_gradients(cut.span) if cut.op == "no_grad" else None
                found.append({"op": cut.op, "span": block or cut.span, "block": block is not None, "to": number[index], "parameters": names})
    return found
