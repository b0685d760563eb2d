"""Sees every operation of a forward pass by the name the user wrote, and the gradient of exactly its value.

A `TorchFunctionMode` sees operations, global module hooks give scope only, a prehook on each output's autograd node gives gradients.
The mode sits at the bottom of the mode stack, so that the user's own modes (torch.device contexts) may come and go above it.
"""
from __future__ import annotations

import sys
from collections.abc import Callable
from threading import get_ident
from time import perf_counter
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, autograd
from torch._C import _get_tracing_state
from torch._C._functorch import peek_interpreter_stack
from torch.compiler import is_compiling
from torch.overrides import TorchFunctionMode

from gradcheck_doctor.observe import process, warned
from gradcheck_doctor.observe.again import follow
from gradcheck_doctor.observe.analysis import record
from gradcheck_doctor.observe.calls import clipping
from gradcheck_doctor.observe.collector import Cell, Collector
from gradcheck_doctor.observe.graph import FULL, Graph, GraphFull, Series, gather
from gradcheck_doctor.observe.hidden import Hidden
from gradcheck_doctor.observe.modes import drop_mode, modes_lifted
from gradcheck_doctor.observe.names import RETURNS, hiding_name, operation_name
from gradcheck_doctor.observe.provenance import ConstructionLog, user_frame, user_span
from gradcheck_doctor.observe.replay import Call, Tree
from gradcheck_doctor.observe.scope import Roots, Scope
from gradcheck_doctor.observe.wrappers import in_sharding
from gradcheck_doctor.records.recording import LossRecord
from gradcheck_doctor.records.sites import Span


class Observer(TorchFunctionMode):
    """Fills a `Graph` while `active`. Never raises into the user's code: a failure of ours is kept in `failure` and ends observing."""

    def __init__(self, log: ConstructionLog | None = None, limit: int = 1024) -> None:
        super().__init__()
        self.log = log
        self.roots = Roots(log)
        self.scope = Scope(self.roots)
        self.graph = Graph()
        self.tree = Tree(self.graph)
        self.hidden = Hidden(self.graph)
        self.exact = True                       # statistics of whole tensors on this step, else of samples
        self.scope.on_passed, self.scope.on_dark = self._passed_on, self._ran_dark
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
        self.on_backward: Callable[[], None] | None = None
        self.recorded = self.concealed = 0      # calls analysed on this step, and calls through which no gradient goes
        self.asked: Tensor | None = None        # the loss whose gradients torch.autograd.grad was last asked for on this step
        self.after_backward: Callable[[], None] | None = None
        self.on_call: Callable[[str, Any], None] | None = None
        self.norm_seen = False
        self.changed = True                     # there may be parameters that were not seen before
        self.pending: list[tuple[Series, int]] = []
        self._used: list[Cell] = []                                # known values that no room was made for on this step
        self._usual: list[Cell] = []                               # those that room is made for
        self._prepared = False
        self.early = False                      # the loop clips gradients in front of the forward: see that on every observed step
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
        """Start observing: scope hooks on, mode at the bottom of the stack.

        Where every pass so far began inside a module, the mode may wait for the first module that runs: what the loop does before, such as
        clearing the gradients, then costs nothing. Not where something was worth noting there (`early`).
        """
        if self.failure is not None:
            return
        self.active = True
        if not self._on and get_ident() == self._thread:            # the stack of modes is that of a thread
            self.scope.attach()
            begins = self.tree.root.following
            if begins and not self.exact and not self.early and all(call.module is not None for call in begins):
                self.scope.on_first = self._see
            else:
                self._see()

    def _see(self) -> None:
        self.scope.on_first = None
        if not self._on:
            self._on = True
            warned.begin()
            with modes_lifted():
                self.__enter__()

    def rest(self) -> None:
        """See no more of this step, but keep it open: gradients already hooked still count."""
        self.scope.detach()
        if self._on and get_ident() == self._thread:
            self._on = False
            warned.end()
            drop_mode(self)

    def close(self) -> None:
        """Stop observing; safe to call at any time, also twice."""
        self.rest()
        self.collector.withdraw()
        self.active = False

    def begin_pass(self, step: int, before_update: bool) -> None:
        self.step, self.before_update, self.backward_seen, self.asked, self.recorded, self.concealed = step, before_update, False, None, 0, 0
        self.pass_number += 1
        self._begin()

    def _begin(self) -> None:
        self.graph.begin_pass()
        self.hidden.begin_pass()
        self.tree.restart()

    def finish_step(self) -> None:
        """Turn what was gathered on this step into numbers."""
        usual = self._used                                      # what the next step is prepared for
        for cell in self._usual:
            if cell.row is None and cell.place >= 0:
                usual.append(cell)
        sheet, step = self.collector.finish(later=True), self.step
        for cell in usual:
            if cell.place >= 0:
                cell.series.put(step, sheet, cell.place)
                cell.place = -1
        self.calls += len(usual)                                # of hooks, nearly half of them
        if usual:
            self._usual = list(dict.fromkeys(usual))
        self._used, self._prepared = [], False
        for series, place in self.pending:
            if step not in series or series.largest and sheet[place].norm > series[step].norm:
                series.put(step, sheet, place)
        self.pending = []
        self._begin()

    def _prepare(self) -> None:
        """Room for all samples that the last step gave. Before the first one: the numbers of earlier steps may be asked for until then."""
        self._prepared = True
        self.collector.prepare(self._usual)

    def take(self, cell: Cell, value: Tensor) -> None:
        """Take statistics of a known value that no room was made for, or not the room it needs."""
        if cell.row is not None:
            cell.row, cell.place = None, -1
        if value.numel() == 0 or value.is_meta or value.layout is not torch.strided or len(self.pending) > FULL:
            return
        layout = self.collector.layout(value)
        cell.learn(layout, value)
        self._used.append(cell)
        self.pending.append((cell.series, self.collector.put(value, self.exact, layout)))

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
        if named is None and not self.backward_seen and func is not Tensor.backward and func is not autograd.backward:
            output = func(*args, **kwargs)                          # a getter, a comparison: the most frequent calls of all
            if self.exact and (name := hiding_name(func)):
                self._hide(name, args, output)
            return output
        started = self.clock()
        if (func is Tensor.backward or func is autograd.backward) and self.here():
            return self._backward(func, args, kwargs)
        if named is None or not self._watching() or self.roots.data_sharded and in_sharding(sys._getframe(1)):
            if self.here() and not self.in_backward and (self.backward_seen or not torch.is_grad_enabled()):
                self.report(clipping(func, sys._getframe(1)))
            self.seconds += self.clock() - started
            output = func(*args, **kwargs)
            if self.exact and not self.backward_seen and not torch.is_grad_enabled():
                self._hide("no_grad", args, output)
            elif self.recorded >= FULL:
                self.scope.on_again = self.rest                     # a loop without a step is seen for a while, not for ever
            return output
        inputs: list[Tensor] = []
        try:
            gather(args, inputs)
            if kwargs:
                gather(kwargs.values(), inputs)
            versions = [t._version for t in inputs] if not torch.is_inference_mode_enabled() else None
            relevant = inputs and (bool(self.scope.stack) or any(t.requires_grad or self.graph.maker(t) is not None for t in inputs))
        except Exception as error:
            self.fail(error)
            return func(*args, **kwargs)
        self.seconds += self.clock() - started
        output = func(*args, **kwargs)
        if not inputs and self.exact and named[0] in RETURNS:
            self.hidden.returned(output)
        if relevant:
            started = self.clock()
            try:
                self.recorded += 1
                if func is autograd.grad:
                    self._ask(args, kwargs)
                changed = versions is not None and any(t._version != v for t, v in zip(inputs, versions, strict=True))
                record(self, func, (named[0], named[1] or changed), args, kwargs, inputs, output)
            except GraphFull:
                self.recorded = FULL
            except Exception as error:
                self.fail(error)
            self.seconds += self.clock() - started
        return output

    def _expected(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Call | None:
        """The known call that this one seems to repeat."""
        if self.roots.data_sharded or not self._watching():
            return None
        try:
            return self.tree.next(func, self.scope.stack[-1] if self.scope.stack else None, args)
        except Exception as error:
            self.fail(error)
        return None

    def _again(self, call: Call, started: float, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that was analysed in an earlier pass: measure it, unless it turns out to be another one after all."""
        self.seconds += self.clock() - started
        output = func(*args, **kwargs)
        started = self.clock()
        try:
            if not self._prepared:
                self._prepare()
            if not follow(self, call, args, output):
                inputs: list[Tensor] = []
                gather((*args, *kwargs.values()), inputs)
                named = operation_name(func) or ("", False)
                record(self, func, (named[0], named[1] or call.inplace), args, kwargs, inputs, output)
        except GraphFull:
            self.recorded = FULL
        except Exception as error:
            self.fail(error)
        self.seconds += self.clock() - started
        return output

    def span_at(self, frame: FrameType | None) -> Span | None:
        """The user's expression that `frame` is in, or was called from; positions are looked up once a call site."""
        found = None if frame is None else self._spans.get((frame.f_code, frame.f_lasti))
        if found is not None:
            return found
        frame = user_frame(frame)
        if frame is None:
            return None
        key = (frame.f_code, frame.f_lasti)
        if key not in self._spans:
            self._spans[key] = user_span(frame)
        return self._spans[key]

    def report(self, call: tuple[str, Any] | None) -> None:
        try:
            if call is not None and self.on_call is not None:
                self.on_call(*call)
        except Exception as error:
            self.fail(error)

    def here(self) -> bool:
        return self.active and self.failure is None and get_ident() == self._thread and process.number == self._process

    def _watching(self) -> bool:
        return (self.active and not self.backward_seen and self.recorded < FULL and self.failure is None and get_ident() == self._thread and process.number == self._process
                and torch.is_grad_enabled() and not is_compiling() and peek_interpreter_stack() is None and _get_tracing_state() is None)

    def fail(self, error: BaseException) -> None:
        self.failure = error
        self.scope.detach()

    def _backward(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        started = self.clock()
        try:
            for loss in (args[0],) if isinstance(args[0], Tensor) else args[0]:
                if (maker := self.graph.maker(loss)) is not None:
                    self.loss_nodes.append(maker)
            if self.on_backward is not None:
                self.on_backward()
        except Exception as error:
            self.fail(error)
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
                self.fail(error)
        self.seconds += self.clock() - started
        return result

    def _ask(self, args: Any, kwargs: Any) -> None:
        """torch.autograd.grad was called: for what a step needs, or for something that is part of a loss, or for the gradient of an input?"""
        outputs, inputs = (*args, None, None)[:2]
        if (not kwargs.get("create_graph") and outputs is not None and len(outputs) == 1 and isinstance(outputs[0], Tensor) and outputs[0].numel() == 1
                and inputs is not None and all(isinstance(t, torch.nn.Parameter) or self.roots.parameter(t) is not None for t in inputs)):
            first, self.asked = self.asked is None, outputs[0].detach()
            if first and (maker := self.graph.maker(outputs[0])) is not None:
                self.loss_nodes.append(maker)

    def _hide(self, op: str, args: Any, output: Any) -> None:
        """A call through which no gradient goes."""
        self.concealed += 1
        if self.concealed > FULL:
            return
        started = self.clock()
        try:
            if self.here():
                inputs: list[Tensor] = []
                outputs: list[Tensor] = []
                gather(args, inputs)
                gather((output,), outputs)
                self.hidden.made(op, inputs, outputs, lambda: self.span_at(sys._getframe(3)))
        except Exception as error:
            self.fail(error)
        self.seconds += self.clock() - started

    def _ran_dark(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        try:
            if self.exact and not self.backward_seen and self.here():
                self.hidden.ran(module, self.span_at(sys._getframe(2)), args, output)
        except Exception as error:
            self.fail(error)

    def _passed_on(self, given: Any, output: Any) -> None:
        before: list[Tensor] = []
        after: list[Tensor] = []
        gather((given,), before)
        gather((output,), after)
        for old, new in zip(before, after, strict=False):
            maker = self.graph.maker(old)
            if maker is not None and new is not old:
                self.graph.bind(new, maker)
