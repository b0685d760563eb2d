"""How large the gradient is at each step of time: at the calls of a cell or of a hand-written recurrence, at the inputs of a fused layer."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradcheck_doctor.observe.graph import Node

KEPT = 3               # passes of a fused layer whose gradients are kept
SHORTEST = 8           # calls of the same weights that are worth a row


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
        if gradient is None or gradient.dim() != 3 or hasattr(gradient, "to_local"):
            return
        try:
            with torch.no_grad():
                node.over_time.append(gradient.detach().float().square().mean(dim=(1 - time, 2)).sqrt())
        except Exception as error:
            failed(error)

    value.grad_fn.register_prehook(take)  # type: ignore[type-var]


def time_gradients(nodes: Iterable[Node]) -> Mapping[int, tuple[float, ...]]:
    """rms of the gradient at each time step, first step first, by the index of the recurrence's first node; of the first pass with a gradient."""
    found: dict[int, tuple[float, ...]] = {}
    calls: dict[tuple[object, ...], list[Node]] = {}
    for node in nodes:
        if node.over_time:
            rows = [tuple(row.tolist()) for row in node.over_time]
            found[node.index] = next((row for row in rows if any(row)), rows[0])
        elif node.parameters and (node.category == "layer" or node.op.endswith("_cell")):
            calls.setdefault((node.op, *(id(p) for p in node.parameters)), []).append(node)
    for same in calls.values():
        if len(same) >= SHORTEST:
            step = next((s for s in sorted(same[-1].gradient) if same[-1].gradient[s].norm > 0), None)
            found[same[0].index] = tuple(n.gradient[step].rms for n in same if step in n.gradient) if step is not None else ()
    return found
