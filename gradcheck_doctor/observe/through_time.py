"""How large the gradient is at each step of time: at the calls of a cell or of a hand-written recurrence, at the inputs of a fused layer."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradcheck_doctor.observe.gradient_hook import batched
from gradcheck_doctor.observe.graph import Node

KEPT = 3               # passes of a fused layer whose gradients are kept
SHORTEST = 8           # calls of the same weights that are worth a row
UPDATES = ("add", "sub", "lerp", "addcmul", "where")                         # what a state is updated with
HOPS = 6               # operations from one value of a state to the next at most


def watch_input(node: Node, value: Any, failed: Callable[[BaseException], None]) -> None:
    """Keep the rms at each time step of the gradient that reaches the input of the fused recurrent layer `node`.

    A fused layer shows no state but the last. The gradient at its input of a step is that at the step's pre-activation times the input weights,
    the same at every step, so their ratios are the same. Needs an input with a gradient (an embedding or a layer in front), one direction, and
    a time axis.
    """
    if not isinstance(value, Tensor) or value.dim() != 3 or value.grad_fn is None or len(node.over_time) >= KEPT:
        return
    if node.attributes.get("bidirectional") is not False or "batch_first" not in node.attributes:
        return
    time, place = (1 if node.attributes["batch_first"] else 0), value.output_nr

    def take(gradients: Sequence[Tensor | None]) -> None:
        gradient = gradients[place] if place < len(gradients) else None
        if gradient is None or gradient.dim() != 3 or hasattr(gradient, "to_local") or batched(gradient):
            return
        try:
            with torch.no_grad():
                node.over_time.append(gradient.detach().float().square().mean(dim=(1 - time, 2)).sqrt())
        except Exception as error:
            failed(error)

    value.grad_fn.register_prehook(take)  # type: ignore[type-var]


def time_gradients(nodes: Iterable[Node]) -> Mapping[int, tuple[float, ...]]:
    """rms of the gradient at each time step, first step first, by the index of the recurrence's first node; of the first pass with a gradient."""
    nodes, found = list(nodes), dict[int, tuple[float, ...]]()
    calls: dict[tuple[object, ...], list[Node]] = {}
    for node in nodes:
        if node.over_time:
            rows = [tuple(row.tolist()) for row in node.over_time]
            found[node.index] = next((row for row in rows if any(row)), rows[0])
        elif node.parameters and (node.category == "layer" or node.op.endswith("_cell")):
            calls.setdefault((node.op, *(id(p) for p in node.parameters)), []).append(node)
    for same in (*calls.values(), *_states(nodes)):
        if len(same) >= SHORTEST:
            step = next((s for s in sorted(same[-1].gradient) if same[-1].gradient[s].norm > 0), None)
            found[same[0].index] = tuple(n.gradient[step].rms for n in same if step in n.gradient) if step is not None else ()
    return found


def _states(nodes: Sequence[Node]) -> Iterator[list[Node]]:
    """The values of a state that a loop updates without weights on its way, h = a * h + b: made by one expression, each of the one before.

    A stack of residual blocks in a loop is none: between two of its sums stand other layers each time.
    """
    groups: dict[tuple[object, ...], list[Node]] = {}
    for node in nodes:
        if node.op in UPDATES and node.span is not None:
            groups.setdefault((id(node.module), node.op, node.span), []).append(node)
    by_index = {node.index: node for node in nodes}
    for same in groups.values():
        pairs = list(zip(same, same[1:], strict=False))
        if len(same) >= SHORTEST and all(_carried(by_index, a, b) for a, b in pairs) and len({_weights(by_index, a, b) for a, b in pairs}) == 1:
            yield same


def _carried(by_index: Mapping[int, Node], old: Node, new: Node) -> bool:
    """`new` is made of `old`, on a way of a few operations without weights."""
    seen, front = {new.index}, [new]
    for _ in range(HOPS):
        front = [by_index[p] for n in front for p in n.producers if old.index <= p and p in by_index and p not in seen and not by_index[p].parameters]
        seen.update(n.index for n in front)
        if old.index in seen:
            return True
    return False


def _weights(by_index: Mapping[int, Node], old: Node, new: Node) -> frozenset[int]:
    """The weights used between them."""
    return frozenset(id(p) for i in range(old.index + 1, new.index) if i in by_index for p in by_index[i].parameters)
