"""What is done with a call whose place in the pass is known: whether it is the same call again, what is measured of it, what the next pass must know."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradcheck_doctor.observe.collector import Cell
from gradcheck_doctor.observe.gradient_hook import GradientHook
from gradcheck_doctor.observe.graph import Node
from gradcheck_doctor.observe.names import dtype_name
from gradcheck_doctor.observe.replay import ANY, OUTSIDE, Call
from gradcheck_doctor.observe.through_time import KEPT

if TYPE_CHECKING:
    from gradcheck_doctor.observe.observer import Observer

KEPT_INPUTS = 4        # batches of each input that are looked at feature by feature


def follow(observer: Observer, call: Call, args: tuple[Any, ...], output: Any) -> bool:
    """Measure the output of a call that seems to be a known one, as the first analysis did. False when what came out is of another kind."""
    node, first = call.node, output
    if node is None:                                            # nothing new then, nothing new now
        if not args or output is not args[0]:
            return False
        observer.tree.here = call
        return True
    if call.outputs:
        if type(output) is not tuple or len(output) != call.outputs or any(type(o) is not Tensor for o in output):
            return False
        first = output[0]
    if type(first) is not Tensor or first.dtype is not call.dtype or not call.inplace and args and output is args[0]:
        return False
    graph = observer.graph
    if call.external is not None:
        entered, cell = call.external
        if len(observer.input_tensors.get(entered.index, ())) < KEPT_INPUTS:
            return False
        _came_again(observer, entered, cell, args[0])
    observer.tree.here = call
    graph._ordinals[call.kind] = call.ordinal
    for value in output if call.outputs else (output,):
        graph.bind(value, node.index)
    if not call.measured:
        return True
    _measure_again(observer, call, node, first)
    for value in output if node.category == "recurrent" and call.outputs else (first,):
        if value.requires_grad and (made_by := value.grad_fn) is not None:
            place = value.output_nr
            (call.hook_at(place) or call.hooked(GradientHook(observer, node, place))).attach(made_by)
    return True


def _came_again(observer: Observer, node: Node, cell: Cell, value: Tensor) -> None:
    """An input of the model, known from earlier passes."""
    observer.graph.ordinal(node.module, "input", node.ordinal + 1)
    observer.graph.bind(value, node.index)
    if value.is_floating_point() and type(value) is Tensor and value.numel():
        torch._C._set_grad_enabled(False)
        try:
            _take_first(observer, cell, value)
        finally:
            torch._C._set_grad_enabled(True)


def _measure_again(observer: Observer, call: Call, node: Node, value: Tensor) -> None:
    torch._C._set_grad_enabled(False)                           # cheaper than to detach; `_watching` has seen it on
    try:
        _take_first(observer, call.cell, value)
        if node.activity is not None and value.numel():
            node.activity.add(value, observer.before_update, observer.collector, observer.exact)
    finally:
        torch._C._set_grad_enabled(True)
    if call.named is not None:
        node.dtypes[observer.step] = call.named


def _take_first(observer: Observer, cell: Cell, value: Tensor) -> None:
    """Of several passes on one step the first counts."""
    row = cell.row
    if row is None and cell.place < 0 or row is not None and not cell.taken(value, row, observer.collector if observer.exact else None):
        observer.take(cell, value)


def learned(observer: Observer, call: Call, args: Any, others: list[tuple[Tensor, int | None]], output: Any, inplace: bool, measured: bool) -> Call:
    """What the next pass has to know of a call, and whether it may be measured without being analysed again."""
    node, graph = call.node, observer.graph
    assert node is not None
    call.kind, call.ordinal = (id(call.module), node.op), node.ordinal + 1
    call.measured, call.inplace = measured, inplace
    first_output = output
    if type(output) is tuple and output and all(type(o) is Tensor for o in output):
        call.outputs, first_output = len(output), output[0]
    if type(first_output) is not Tensor or node.index >= len(graph.nodes) or graph.nodes[node.index] is not node:
        return call
    if first_output.layout is not torch.strided or first_output.is_complex():
        return call
    call.dtype = first_output.dtype
    call.named = None if call.dtype is torch.float32 else dtype_name(call.dtype)
    entered = [t for t, maker in others if maker is None and graph.maker(t) is not None]      # inputs from outside that became nodes
    first = args[0] if args else None
    if isinstance(first, Tensor):
        makers = [maker for t, maker in others if t is first]
        call.made_by = ANY if not makers else OUTSIDE if makers[0] is None else makers[0]
    if len(args) > 1 and isinstance(args[1], Tensor) and any(args[1] is p for p in node.parameters):
        call.weight = args[1]
    if entered and all(t is first for t in entered) and output is not first:
        index = graph.maker(entered[0])
        call.external = (graph.nodes[index], Cell(graph.nodes[index].forward)) if index is not None else None
    told_apart = call.module is not None or call.made_by >= 0 or call.weight is not None
    special = node.op == "setitem" or node.op in ("sub", "mul") and call.module is None      # a residual, the scaling of the loss
    through_time = node.category == "recurrent" and bool(node.over_time) and len(node.over_time) < KEPT
    call.quick = told_apart and not special and not through_time and (not entered or call.external is not None)
    return call
