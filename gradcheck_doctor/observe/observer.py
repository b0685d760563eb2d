"""Sees every operation of a forward pass by the name the user wrote, and the gradient of exactly its value.

A `TorchFunctionMode` sees operations, global module hooks give scope only, a prehook on each output's autograd node gives gradients.
The mode sits at the bottom of the mode stack, so that the user's own modes (torch.device contexts) may come and go above it.
"""
from __future__ import annotations

import sys
from collections.abc import Callable
from threading import get_ident
from time import perf_counter
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch._C import _get_tracing_state
from torch._C._functorch import peek_interpreter_stack
from torch.compiler import is_compiling
from torch.overrides import TorchFunctionMode

from gradcheck_doctor.observe import process
from gradcheck_doctor.observe.again import FULL, KEPT_INPUTS, learned, measure_again, repeats
from gradcheck_doctor.observe.calls import clipping, loss_scale
from gradcheck_doctor.observe.collector import Collector
from gradcheck_doctor.observe.gradient_hook import GradientHook
from gradcheck_doctor.observe.graph import Graph, Node, Series, gather
from gradcheck_doctor.observe.losses import is_residual, loss_record
from gradcheck_doctor.observe.modes import drop_mode, modes_lifted
from gradcheck_doctor.observe.names import CATEGORY, FRAGILE, dtype_name, operation_name, plain_attributes, refined
from gradcheck_doctor.observe.norm_input import note_first_norm
from gradcheck_doctor.observe.provenance import ConstructionLog, user_frame, user_span
from gradcheck_doctor.observe.replay import Call, Tree
from gradcheck_doctor.observe.scope import Roots, Scope
from gradcheck_doctor.observe.through_time import watch_input
from gradcheck_doctor.observe.units import RELU_LIKE, SATURATION, UnitActivity
from gradcheck_doctor.observe.wrappers import in_sharding
from gradcheck_doctor.records.recording import LossRecord
from gradcheck_doctor.records.sites import Span

STATEFUL = frozenset({"norm", "recurrent"})       # beside their input they take running statistics, a first hidden state: no inputs of the model
MEASURED = frozenset({"layer", "activation", "norm", "merge", "recurrent", "embedding", "attention", "loss", "pool", "input", "scale"})


class Observer(TorchFunctionMode):
    """Fills a `Graph` while `active`. Never raises into the user's code: a failure of ours is kept in `failure` and ends observing."""

    def __init__(self, log: ConstructionLog | None = None, limit: int = 1024) -> None:
        super().__init__()
        self.log = log
        self.roots = Roots(log)
        self.scope = Scope(self.roots)
        self.graph = Graph()
        self.tree = Tree(self.graph)
        self.full = True                        # companions of layers are measured on this step, too
        self.exact = True                       # statistics of whole tensors on this step, else of samples
        self.scope.on_passed = self._passed_on
        self.collector = Collector(limit)
        self.step = 0
        self.before_update = True
        self.active = self._on = False
        self.failure: BaseException | None = None
        self.losses: dict[int, LossRecord] = {}
        self.input_tensors: dict[int, list[Tensor]] = {}
        self.input_facts: dict[int, tuple[int, dict[str, Any]]] = {}        # number of tensors they were computed from, facts
        self.loss_nodes: list[int] = []
        self.pass_number = 0
        self.backward_seen = False
        self.sharded_values = False
        self.on_backward: Callable[[Tensor], None] | None = None
        self.after_backward: Callable[[], None] | None = None
        self.on_call: Callable[[str, Any], None] | None = None
        self._norm_seen = False
        self._pending: list[tuple[Series, int]] = []
        self._thread = get_ident()
        self._process = process.number
        self.in_backward = False
        self.clock = perf_counter
        self.seconds = 0.0                      # spent in our own code so far, and how often we were called
        self.calls = 0
        self.dtypes: set[str] = set()
        self._spans: dict[tuple[CodeType, int], Span | None] = {}

    # -- switching on and off -------------------------------------------------------------------------------------------------------
    def open(self) -> None:
        """Start observing: mode at the bottom of the stack, scope hooks on."""
        if self.failure is not None:
            return
        if not self._on:
            with modes_lifted():
                self.__enter__()
            self.scope.attach()
        self.active = self._on = True

    def rest(self) -> None:
        """See no more of this step, but keep it open: gradients already hooked still count."""
        self.scope.detach()
        if self._on:
            self._on = False
            drop_mode(self)

    def close(self) -> None:
        """Stop observing; safe to call at any time, also twice."""
        self.rest()
        self.active = False

    def begin_pass(self, step: int, before_update: bool) -> None:
        self.step, self.before_update, self.backward_seen = step, before_update, False
        self.pass_number += 1
        self._begin()

    def _begin(self) -> None:
        self.graph.begin_pass()
        self.tree.restart()

    def finish_step(self) -> None:
        """Turn what was gathered on this step into numbers."""
        sheet, step = self.collector.finish(later=not self.exact), self.step
        for series, place in self._pending:
            if step not in series or series.largest and sheet[place].norm > series[step].norm:
                series.put(step, sheet, place)
        self._pending = []
        self._begin()

    # -- seeing ---------------------------------------------------------------------------------------------------------------------
    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.calls += 1
        kwargs = kwargs or {}
        for known in self.tree.here.following:
            if known.quick and (known.func is func or known.func == func):
                started = self.clock()
                if (call := self._expected(func, args)) is not None:
                    return self._again(call, started, func, args, kwargs)
                self.seconds += self.clock() - started
                break
        named = operation_name(func)
        if named is None and not self.backward_seen and func is not Tensor.backward:
            return func(*args, **kwargs)                            # a getter, a comparison: the most frequent calls of all
        started = self.clock()
        if func is Tensor.backward and self._here():
            return self._backward(func, args, kwargs)
        if named is None or not self._watching() or self.roots.data_sharded and in_sharding(sys._getframe(1)):
            if self._here() and not self.in_backward and (self.backward_seen or not torch.is_grad_enabled()):
                self._report(clipping(func, sys._getframe(1)))
            self.seconds += self.clock() - started
            return func(*args, **kwargs)
        inputs: list[Tensor] = []
        try:
            gather(args, inputs)
            if kwargs:
                gather(kwargs.values(), inputs)
            versions = [t._version for t in inputs] if not torch.is_inference_mode_enabled() else None
            relevant = inputs and (bool(self.scope.stack) or any(t.requires_grad or self.graph.maker(t) is not None for t in inputs))
        except Exception as error:
            self._fail(error)
            return func(*args, **kwargs)
        self.seconds += self.clock() - started
        output = func(*args, **kwargs)
        if relevant:
            started = self.clock()
            try:
                changed = versions is not None and any(t._version != v for t, v in zip(inputs, versions, strict=True))
                self._record(func, (named[0], named[1] or changed), args, kwargs, inputs, output)
            except Exception as error:
                self._fail(error)
            self.seconds += self.clock() - started
        return output

    def _expected(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Call | None:
        """The known call that this one seems to repeat."""
        if self.roots.data_sharded or not self._watching():
            return None
        try:
            return self.tree.next(func, self.scope.stack[-1] if self.scope.stack else None, args)
        except Exception as error:
            self._fail(error)
        return None

    def _again(self, call: Call, started: float, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that was analysed in an earlier pass: measure it, unless it turns out to be another one after all."""
        self.seconds += self.clock() - started
        output = func(*args, **kwargs)
        started = self.clock()
        try:
            if repeats(self, call, args, output):
                self.tree.here = call
                if call.node is not None:
                    measure_again(self, call, call.node, args, output)
            else:
                inputs: list[Tensor] = []
                gather((*args, *kwargs.values()), inputs)
                named = operation_name(func) or ("", False)
                self._record(func, (named[0], named[1] or call.inplace), args, kwargs, inputs, output)
        except Exception as error:
            self._fail(error)
        self.seconds += self.clock() - started
        return output

    def _report(self, call: tuple[str, Any] | None) -> None:
        try:
            if call is not None and self.on_call is not None:
                self.on_call(*call)
        except Exception as error:
            self._fail(error)

    def _here(self) -> bool:
        return self.active and self.failure is None and get_ident() == self._thread and process.number == self._process

    def _watching(self) -> bool:
        return (self.active and not self.backward_seen and self.failure is None and get_ident() == self._thread and process.number == self._process
                and torch.is_grad_enabled() and not is_compiling() and peek_interpreter_stack() is None and _get_tracing_state() is None)

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self.scope.detach()

    def _backward(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        started = self.clock()
        try:
            maker = self.graph.maker(args[0])
            if maker is not None:
                self.loss_nodes.append(maker)
            if self.on_backward is not None:
                self.on_backward(args[0])
        except Exception as error:
            self._fail(error)
        self.seconds += self.clock() - started
        self.in_backward = True
        try:
            result = func(*args, **kwargs)
        finally:
            self.in_backward = False
        self.backward_seen = True
        started = self.clock()
        if self.after_backward is not None:
            try:
                self.after_backward()
            except Exception as error:
                self._fail(error)
        self.seconds += self.clock() - started
        return result

    # -- recording one operation ------------------------------------------------------------------------------------------------------
    def _record(self, func: Callable[..., Any], named: tuple[str, bool], args: Any, kwargs: Any, inputs: list[Tensor], output: Any) -> None:
        """Find out what a call is, measure it, and remember it for the next pass."""
        op, inplace = named
        module = self.scope.stack[-1] if self.scope.stack else None
        if op == "setitem":
            output = args[0]
        made: list[Tensor] = []
        gather((output,), made)
        values = [v for v in made if (v.is_floating_point() or v.is_complex()) and not (v.requires_grad and v.is_leaf)]
        if not values or all(any(v is t for t in inputs) for v in values) and not inplace and op != "setitem":
            same = Call(func, module, None)                         # no new value (dropout in eval returns its input)
            same.quick = bool(args) and output is args[0]
            self.tree.learn(same)
            return
        category = CATEGORY.get(op, "other")
        used, others = [], []
        for tensor in inputs:
            maker = self.graph.maker(tensor)
            parameter = self._parameter(tensor) if maker is None else None
            if parameter is None:
                others.append((tensor, maker))
            else:
                used.append(parameter)
        if used and self.roots.data_sharded and self.scope.stack:
            used = [self.roots.shard_behind(self.scope.stack[-1], p) for p in used]
        if category == "shape" and used and not others:
            for value in values:
                self.graph.alias(value, used[0])
            self.tree.learn(Call(func, module, None))
            return
        category = refined(category, op, len(used), len(others))
        if op == "mul" and module is None:
            self._report(loss_scale(sys._getframe(2)))
        carried = category in STATEFUL and bool(args) and any(t is args[0] for t, _ in others)
        producers, source = self._producers([(t, m) for t, m in others if not carried or m is not None or t is args[0]], module, category)
        node, new = self.graph.node(module, op, category)
        if new or not node.producers:
            node.producers = producers
        node.source = node.source or source
        if new:
            self._describe(node, func, args, kwargs, inputs, used, values[0], inplace)
        node.last_pass = self.pass_number
        for value in values:
            self.graph.bind(value, node.index)
        measured = category in MEASURED or op in FRAGILE
        if measured:
            self._measure(node, values)
        if new and op == "batch_norm" and not self._norm_seen:
            self._norm_seen = True
            note_first_norm(node, args[0] if args else None)
        if category == "recurrent":
            watch_input(node, args[0] if args else None, self._fail)
        if (category == "loss" or op == "sub" and is_residual(args)) and isinstance(output, Tensor) and node.index not in self.losses:
            self.losses[node.index] = loss_record(node, self.graph, args, kwargs, output)
        self.tree.learn(learned(self, Call(func, module, node), args, others, output, inplace, measured))

    def _passed_on(self, given: Any, output: Any) -> None:
        before: list[Tensor] = []
        after: list[Tensor] = []
        gather((given,), before)
        gather((output,), after)
        for old, new in zip(before, after, strict=False):
            maker = self.graph.maker(old)
            if maker is not None and new is not old:
                self.graph.bind(new, maker)

    def _parameter(self, tensor: Tensor) -> Tensor | None:
        if tensor.requires_grad and tensor.is_leaf or isinstance(tensor, torch.nn.Parameter):
            return tensor
        return self.graph.aliased(tensor)

    def _producers(self, others: list[tuple[Tensor, int | None]], module: Any, category: str) -> tuple[list[int], bool]:
        """Nodes that made the inputs; a tensor from outside becomes an input node when a module uses it."""
        found, source = [], False
        for tensor, maker in others:
            if maker is None:
                maker = self.graph.passed_on(tensor)
            if maker is None:
                source = True
                if module is None or category == "loss" or tensor.dim() == 0 or tensor.is_meta:
                    continue
                known = self.graph.maker(tensor)                    # the same tensor may come twice
                maker = self._input(tensor) if known is None else known
            found.append(maker)
        return list(dict.fromkeys(found)), source or not others

    def _input(self, tensor: Tensor) -> int:
        module = self.scope.stack[0] if self.scope.stack else None
        node, new = self.graph.node(module, "input", "input")
        if new:
            node.shape, node.requires_grad = tuple(tensor.shape), tensor.requires_grad
            node.attributes = {"name": self.scope.argument_names.get(id(tensor), ""), "dtype": str(tensor.dtype).removeprefix("torch.")}
        kept = self.input_tensors.setdefault(node.index, [])
        if len(kept) < KEPT_INPUTS:
            kept.append(tensor.detach())
        self.graph.bind(tensor, node.index)
        if tensor.is_floating_point():
            self._measure(node, [tensor])
        return node.index

    def _describe(self, node: Node, func: Any, args: Any, kwargs: Any, inputs: list[Tensor], used: list[Tensor], value: Tensor, inplace: bool) -> None:
        node.attributes = plain_attributes(func, args, kwargs)
        if inplace:
            node.attributes["inplace"] = True
        node.parameters = used
        node.shape, node.requires_grad = tuple(value.shape), value.requires_grad
        node.input_shapes = tuple(tuple(t.shape) for t in inputs)
        node.span = self._span()
        if node.span is None and node.category == "loss" and node.module is not None and self.log is not None:
            node.span = self.log.spans.get(node.module)             # `loss_fn = nn.MSELoss()`, called by the probe
        if node.op in ("add", "sub") and len(node.producers) == 2:
            first, second = node.producers
            node.attributes["residual"] = first in self.graph.ancestors(second) or second in self.graph.ancestors(first)
        if node.op in SATURATION or node.op in RELU_LIKE:
            node.activity = UnitActivity(node.op, self._unit_axis(node, value))

    def _span(self) -> Span | None:
        """The user's expression that made this call; positions are looked up once a call site."""
        frame = user_frame(sys._getframe(3))
        if frame is None:
            return None
        key = (frame.f_code, frame.f_lasti)
        if key not in self._spans:
            self._spans[key] = user_span(frame)
        return self._spans[key]

    def _unit_axis(self, node: Node, value: Tensor) -> int:
        """Channels are axis 1 after a convolution and in images, the last axis otherwise."""
        if value.dim() <= 2:
            return 1
        index = node.producers[0] if node.producers else None
        while index is not None:
            maker = self.graph.nodes[index]
            if maker.category in ("layer", "recurrent", "attention", "embedding"):
                return 1 if maker.op.startswith("conv") else -1
            if maker.op == "batch_norm":
                return 1
            if maker.op in ("permute", "transpose", "movedim"):
                break
            index = maker.producers[0] if maker.producers else None
        return 1 if value.dim() == 4 and index is None else -1

    def _measure(self, node: Node, values: list[Tensor]) -> None:
        value = values[0]
        if value.numel() == 0 or value.is_meta or value.layout is not torch.strided or not value.is_floating_point() or len(self._pending) > FULL:
            return
        if hasattr(value, "to_local"):
            self.sharded_values = True                               # tensor parallelism: only a part of the value is here
            return
        if type(value) is not Tensor and not isinstance(value, torch.nn.Parameter):
            value = value.as_subclass(Tensor)
        if value.requires_grad:
            value = value.detach()
        self._pending.append((node.forward, self.collector.put(value, self.exact)))
        node.dtypes[self.step] = name = dtype_name(value.dtype)
        self.dtypes.add(name)
        if node.activity is not None:
            node.activity.add(value, self.before_update, self.collector, self.exact)
        for each in values if node.category == "recurrent" else values[:1]:
            if each.requires_grad and (made_by := each.grad_fn) is not None:
                GradientHook(self, node, each.output_nr).attach(made_by)
