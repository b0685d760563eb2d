"""What one call is: its operation, what its value was made from, which parameters it uses, what of it is measured. Found out once for each place of a pass."""
from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradcheck_doctor.observe.again import KEPT_INPUTS, learned
from gradcheck_doctor.observe.calls import loss_scale
from gradcheck_doctor.observe.gradient_hook import GradientHook
from gradcheck_doctor.observe.graph import FULL, Node, gather, own_gradient
from gradcheck_doctor.observe.losses import is_residual, loss_record
from gradcheck_doctor.observe.names import CATEGORY, FRAGILE, dtype_name, plain_attributes, refined
from gradcheck_doctor.observe.norm_input import note_first_norm
from gradcheck_doctor.observe.replay import Call
from gradcheck_doctor.observe.through_time import watch_input
from gradcheck_doctor.observe.units import RELU_LIKE, SATURATION, UnitActivity

if TYPE_CHECKING:
    from gradcheck_doctor.observe.observer import Observer

MEASURED = frozenset({"layer", "activation", "norm", "merge", "recurrent", "embedding", "attention", "loss", "pool", "input", "scale"})
STATEFUL = frozenset({"norm", "recurrent"})       # beside their input they take running statistics, a first hidden state: no inputs of the model


def record(observer: Observer, func: Callable[..., Any], named: tuple[str, bool], args: Any, kwargs: Any, inputs: list[Tensor], output: Any) -> None:
    """Find out what a call is, measure it, and remember it for the next pass."""
    op, inplace = named
    observer.changed = True
    module = observer.scope.stack[-1] if observer.scope.stack else None
    if op == "setitem":
        output = args[0]
    made: list[Tensor] = []
    gather((output,), made)
    values = [v for v in made if (v.is_floating_point() or v.is_complex()) and not (v.requires_grad and v.is_leaf)]
    if not values or all(any(v is t for t in inputs) for v in values) and not inplace and op != "setitem":
        same = Call(func, module, None)                         # no new value (dropout in eval returns its input)
        same.quick = bool(args) and output is args[0]
        observer.tree.learn(same)
        observer.hidden.made(op, inputs, (v for v in made if not v.is_floating_point()), lambda: observer.span_at(sys._getframe(4)))
        return
    category = CATEGORY.get(op, "other")
    used, others = [], []
    for tensor in inputs:
        maker = observer.graph.maker(tensor)
        parameter = _parameter(observer, tensor) if maker is None else None
        if parameter is None:
            others.append((tensor, maker))
        else:
            used.append(parameter)
    if used and observer.roots.data_sharded and observer.scope.stack:
        used = [observer.roots.shard_behind(observer.scope.stack[-1], p) for p in used]
    if category == "shape" and used and not others:
        for value in values:
            observer.graph.alias(value, used[0])
        observer.tree.learn(Call(func, module, None))
        return
    category = refined(category, op, len(used), len(others))
    if op == "mul" and not used and len(args) > 1 and args[0] is args[1]:      # x * x
        op, category = "square", CATEGORY["square"]
    if op == "mul" and module is None:
        observer.report(loss_scale(sys._getframe(2)))
    carried = category in STATEFUL and bool(args) and any(t is args[0] for t, _ in others)
    producers, source = _producers(observer, [(t, m) for t, m in others if not carried or m is not None or t is args[0]], module, category)
    node, new = observer.graph.node(module, op, category)
    if new or not node.producers:
        node.producers = producers
    node.source = node.source or source
    if new:
        _describe(observer, node, func, args, kwargs, inputs, used, values[0], inplace)
    observer.hidden.arrived(node, inputs)
    for value in values:
        observer.graph.bind(value, node.index)
    if len(values) < len(made):                                     # topk's and sort's places
        observer.hidden.made(op, values, (v for v in made if not v.is_floating_point()), lambda: node.span)
    measured = category in MEASURED or op in FRAGILE
    if measured:
        _measure(observer, node, values)
    if new and op == "batch_norm" and not observer.norm_seen:
        observer.norm_seen = True
        note_first_norm(node, args[0] if args else None)
    if category == "recurrent":
        watch_input(node, args[0] if args else None, observer.fail)
    if (category == "loss" or op == "sub" and is_residual(args)) and isinstance(output, Tensor) and node.index not in observer.losses:
        observer.losses[node.index] = loss_record(node, observer.graph, args, kwargs, output)
    observer.tree.learn(learned(observer, Call(func, module, node), args, others, output, inplace, measured))


def _parameter(observer: Observer, tensor: Tensor) -> Tensor | None:
    """The weight that a tensor is, or is a view of; not what is handed to the model, though it may be a leaf: an image that is optimised, or attacked."""
    if observer.scope.stack and id(tensor) in observer.scope.argument_names and observer.roots.parameter(tensor) is None:
        return None
    if tensor.requires_grad and tensor.is_leaf or isinstance(tensor, torch.nn.Parameter):
        return tensor
    return observer.graph.aliased(tensor)


def _producers(observer: Observer, others: list[tuple[Tensor, int | None]], module: Any, category: str) -> tuple[list[int], bool]:
    """Nodes that made the inputs; a tensor from outside becomes an input node when a module uses it."""
    found, source = [], False
    for tensor, maker in others:
        if maker is None:
            maker = observer.graph.passed_on(tensor)
        if maker is None:
            source = True
            if module is None or category == "loss" or tensor.dim() == 0 or tensor.is_meta:
                continue
            known = observer.graph.maker(tensor)                    # the same tensor may come twice
            maker = _input(observer, tensor) if known is None else known
        found.append(maker)
    return list(dict.fromkeys(found)), source or not others


def _input(observer: Observer, tensor: Tensor) -> int:
    module = observer.scope.stack[0] if observer.scope.stack else None
    node, new = observer.graph.node(module, "input", "input")
    if new:
        node.shape, node.requires_grad = tuple(tensor.shape), tensor.requires_grad
        node.attributes = {"name": observer.scope.argument_names.get(id(tensor), ""), "dtype": str(tensor.dtype).removeprefix("torch.")}
    kept = observer.input_tensors.setdefault(node.index, [])
    if len(kept) < KEPT_INPUTS:
        kept.append(tensor.detach())
    observer.graph.bind(tensor, node.index)
    if tensor.is_floating_point():
        _measure(observer, node, [tensor])
    return node.index


def _describe(observer: Observer, node: Node, func: Any, args: Any, kwargs: Any, inputs: list[Tensor], used: list[Tensor], value: Tensor, inplace: bool) -> None:
    node.attributes = plain_attributes(func, args, kwargs)
    if inplace:
        node.attributes["inplace"] = True
    if any(map(own_gradient, inputs)):
        node.attributes["own_gradient"] = True
    node.parameters = used
    node.shape, node.requires_grad = tuple(value.shape), value.requires_grad
    node.input_shapes = tuple(tuple(t.shape) for t in inputs)
    node.span = observer.span_at(sys._getframe(3))
    if node.span is None and node.category == "loss" and node.module is not None and observer.log is not None:
        node.span = observer.log.spans.get(node.module)             # `loss_fn = nn.MSELoss()`, called by the probe
    if node.op in ("add", "sub") and len(node.producers) == 2:
        first, second = node.producers
        node.attributes["residual"] = first in observer.graph.ancestors(second) or second in observer.graph.ancestors(first)
    if node.op in SATURATION or node.op in RELU_LIKE:
        node.activity = UnitActivity(node.op, _unit_axis(observer, node, value))


def _unit_axis(observer: Observer, node: Node, value: Tensor) -> int:
    """Channels are axis 1 after a convolution and in images, the last axis otherwise."""
    if value.dim() <= 2:
        return 1
    index = node.producers[0] if node.producers else None
    while index is not None:
        maker = observer.graph.nodes[index]
        if maker.category in ("layer", "recurrent", "attention", "embedding"):
            return 1 if maker.op.startswith("conv") else -1
        if maker.op == "batch_norm":
            return 1
        if maker.op in ("permute", "transpose", "movedim"):
            break
        index = maker.producers[0] if maker.producers else None
    return 1 if value.dim() == 4 and index is None else -1


def _measure(observer: Observer, node: Node, values: list[Tensor]) -> None:
    value = values[0]
    if value.numel() == 0 or value.is_meta or value.layout is not torch.strided or not value.is_floating_point() or len(observer.pending) > FULL:
        return
    if hasattr(value, "to_local"):
        observer.sharded_values = True                               # tensor parallelism: only a part of the value is here
        return
    if type(value) is not Tensor and not isinstance(value, torch.nn.Parameter):
        value = value.as_subclass(Tensor)
    if value.requires_grad:
        value = value.detach()
    observer.pending.append((node.forward, observer.collector.put(value, observer.exact)))
    node.dtypes[observer.step] = name = dtype_name(value.dtype)
    observer.dtypes.add(name)
    if node.activity is not None:
        node.activity.add(value, observer.before_update, observer.collector, observer.exact)
    for each in values if node.category == "recurrent" else values[:1]:
        if each.requires_grad and (made_by := each.grad_fn) is not None:
            GradientHook(observer, node, each.output_nr).attach(made_by)
