"""The operations seen so far and what links them: filled in pass by pass, frozen into records at the end."""
from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gradcheck_doctor.observe.collector import Sheet
from gradcheck_doctor.observe.units import UnitActivity
from gradcheck_doctor.records.recording import Observed
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.records.summaries import Summary

LIMIT = 20_000        # operations kept of one model
FULL = 40_000         # calls analysed, and tensors measured, between two optimizer steps at most


class Series(dict[int, Summary]):
    """Summaries by step. Those of a step stay in its sheet of numbers until they are asked for: most never are."""

    def __init__(self, largest: bool = False) -> None:
        super().__init__()
        self.largest = largest                  # of several values on one step keep that of the largest norm, else the first

    def put(self, step: int, sheet: Sheet, place: int) -> None:
        super().__setitem__(step, (sheet, place))  # type: ignore[assignment]

    def __getitem__(self, step: int) -> Summary:
        found = super().__getitem__(step)
        if isinstance(found, tuple):
            sheet, place = found
            found = sheet[place]
            super().__setitem__(step, found)
        return found

    def get(self, step: int, default: Any = None) -> Any:
        return self[step] if step in self else default              # noqa: SIM401 (dict.get would not look into the sheet)

    def first(self) -> Summary | None:
        """Of the earliest step that was put."""
        return self[next(iter(self))] if self else None


@dataclass
class Node:
    """An operation in the making."""

    index: int
    op: str
    category: str
    module: nn.Module | None
    ordinal: int
    span: Span | None = None
    producers: list[int] = field(default_factory=list)
    parameters: list[torch.Tensor] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    input_shapes: tuple[tuple[int, ...], ...] = ()
    requires_grad: bool = True
    source: bool = False                      # the signal enters here, from outside any recorded operation
    activity: UnitActivity | None = None
    forward: Series = field(default_factory=Series)
    gradient: Series = field(default_factory=lambda: Series(largest=True))
    dtypes: dict[int, str] = field(default_factory=dict)
    over_time: list[torch.Tensor] = field(default_factory=list)       # rms of the gradient at each time step, one row a pass

    def observed(self, since: int = -1) -> tuple[Observed, ...]:
        steps = sorted(step for step in self.forward.keys() | self.gradient.keys() if step > since)
        return tuple(Observed(s, self.forward.get(s), self.gradient.get(s), self.dtypes.get(s, "float32")) for s in steps)


class GraphFull(Exception):
    """A forward has more calls than are kept; what comes behind them is not seen."""


class Graph:
    """All nodes by call site, and which live tensor came from which node."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._sites: dict[tuple[int, str, int], Node] = {}
        self._ordinals: dict[tuple[int, str], int] = {}
        self._made: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}
        self._aliases: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}

    def begin_pass(self) -> None:
        """A new forward: call ordinals start again, no tensor is known."""
        self._ordinals.clear()
        self._made.clear()
        self._aliases.clear()

    def node(self, module: nn.Module | None, op: str, category: str) -> tuple[Node, bool]:
        """The node of the next call of `op` in `module`, and whether it is new.

        Raises:
            GraphFull: there is no room for a new one.
        """
        kind = (id(module), op)
        ordinal = self._ordinals.get(kind, 0)
        self._ordinals[kind] = ordinal + 1
        key = (*kind, ordinal)
        known = self._sites.get(key)
        if known is not None:
            return known, False
        if self.full:
            raise GraphFull
        node = self._sites[key] = Node(len(self.nodes), op, category, module, ordinal)
        self.nodes.append(node)
        return node, True

    @property
    def empty(self) -> bool:
        """Nothing was seen of this pass."""
        return not self._made

    @property
    def full(self) -> bool:
        return len(self.nodes) >= LIMIT

    def ordinal(self, module: nn.Module | None, op: str, after: int) -> None:
        """A call of `op` in `module` was counted elsewhere."""
        self._ordinals[id(module), op] = after

    def bind(self, tensor: torch.Tensor, index: int) -> None:
        self._made[id(tensor)] = (weakref.ref(tensor), index)

    def maker(self, tensor: torch.Tensor) -> int | None:
        found = self._made.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def passed_on(self, tensor: torch.Tensor) -> int | None:
        """The maker of what a user-written autograd function handed through unchanged (FSDP2 and DDP put such functions around modules)."""
        if not isinstance(tensor.grad_fn, torch.autograd.function.BackwardCFunction):
            return None
        for reference, index in reversed(self._made.values()):
            known = reference()
            if known is not None and known.shape == tensor.shape and known.data_ptr() == tensor.data_ptr():
                return index
        return None

    def alias(self, tensor: torch.Tensor, parameter: torch.Tensor) -> None:
        """`tensor` is only another view of `parameter` (weight.T)."""
        self._aliases[id(tensor)] = (weakref.ref(tensor), parameter)

    def aliased(self, tensor: torch.Tensor) -> torch.Tensor | None:
        found = self._aliases.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def ancestors(self, index: int) -> set[int]:
        """Operations that the value of `index` depends on, itself included."""
        seen, stack = {index}, [index]
        while stack:
            for producer in self.nodes[stack.pop()].producers:
                if producer not in seen:
                    seen.add(producer)
                    stack.append(producer)
        return seen


def own_gradient(tensor: torch.Tensor) -> bool:
    """An autograd function of the user's made it, so that its gradient may be whatever that says (a reversal, a scale that grows)."""
    maker = tensor.grad_fn
    return isinstance(maker, torch.autograd.function.BackwardCFunction) and not str(getattr(type(maker), "_forward_cls", torch).__module__).startswith("torch.")


def gather(values: Iterable[Any], found: list[torch.Tensor]) -> None:
    """Append the tensors in arguments, lists, tuples and dicts of them."""
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            gather(value, found)
        elif isinstance(value, dict):
            gather(value.values(), found)
        elif type(value).__name__ == "PackedSequence" and hasattr(value, "data"):
            found.append(value.data)
