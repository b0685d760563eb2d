"""Watches any training loop: windows between optimizer steps, some of them observed in full, the others by loss and gradient norm only.

A window ends when an optimizer's step ends, or with backward where the loop changes the weights without one. Nothing is patched on the user's
objects; the global hooks of torch.optim mark the steps, and `Tensor.backward` is wrapped while attached so that the loss of every step is known.
"""
from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from gradcheck_doctor.observe import facts
from gradcheck_doctor.observe.backward import BackwardCalls
from gradcheck_doctor.observe.build import ParameterBook
from gradcheck_doctor.observe.calls import call_seconds, still_scaled
from gradcheck_doctor.observe.distributed import Ranks, share_of
from gradcheck_doctor.observe.observer import Observer
from gradcheck_doctor.observe.optimizers import KnownOptimizer, Optimizers, Stepping, WaitingOptimizer
from gradcheck_doctor.observe.own_loop import OwnLoop
from gradcheck_doctor.observe.provenance import ConstructionLog, user_span
from gradcheck_doctor.observe.recorded import recorded
from gradcheck_doctor.observe.scaling import ScalerSteps
from gradcheck_doctor.observe.schedule import Schedule
from gradcheck_doctor.observe.step_log import StepLog
from gradcheck_doctor.observe.updates import GradientSample, Updates, add_rows, global_norm, gradient_norms, gradient_row
from gradcheck_doctor.records.lazy import Lazy
from gradcheck_doctor.records.recording import Event, ParameterStep, Recording

FULL_FIRST = 64        # observed steps that look at everything
FULL_SHARE = 0.25      # later ones that do, as a share of all steps, spread
GOLDEN = 0.6180339887498949    # in step with no rhythm in which several optimizers take their turns


class Monitor:
    """Observes training while attached; `recording()` gives what was seen so far at any time.

    Args:
        models: watched models; () watches whatever runs (as `doctor run` does).
        optimizers: their optimizers, if known; others are met when they step.
        every: N or "auto".
        log: where construction was recorded.
        max_steps: call `stop` after that many optimizer steps.
        on_step, on_observed: called after every optimizer step, and after every observed one while nothing is being observed;
            the time of the latter counts as time spent on observing.
        exact: read whole tensors on every observed step, not only on the first ones of each phase and after anything that is not finite.
        channel: name under which the ranks of a distributed training find each other's figures; None reports on this process alone.
    """

    def __init__(self, models: Iterable[nn.Module] = (), optimizers: Iterable[torch.optim.Optimizer] = (), every: int | str = "auto", *,
                 log: ConstructionLog | None = None, max_steps: int | None = None, stop: Callable[[], None] | None = None,
                 on_step: Callable[[Monitor], None] | None = None, on_observed: Callable[[Monitor], None] | None = None, limit: int = 1024,
                 channel: str | None = None, exact: bool = False) -> None:
        self.observer = Observer(log, limit)
        self.log = log
        self.book = ParameterBook(log)
        self.only = bool(list(models := list(models)))
        for model in models:
            facts.refuse(model)
            self.observer.roots.adopt(model)
        self.schedule = Schedule(every)
        self.max_steps, self.stop, self.on_step, self.on_observed = max_steps, stop, on_step, on_observed
        self.facts = facts.Facts()
        self.ranks = Ranks(channel)
        self.step = 0
        self.steps = StepLog()
        self.events, self._counts = list[Event](), dict[str, int]()
        self.parameter_steps: dict[int, Lazy[ParameterStep]] = {}
        self.optimizers = Optimizers(log, self._ours if self.only else None)
        self.own = OwnLoop(self)
        self.waiting: list[WaitingOptimizer] | None = None          # optimizers that were there before the first step of any
        self.norms: dict[int, float | None] = {}
        self._gradients = GradientSample()
        self._exact = exact
        self.full_share = 1.0 if every == "auto" else min(1.0, FULL_SHARE * int(every))      # of the later observed steps that look at everything
        self._brief = False                                         # this step is looked at briefly: loss and gradient norms
        self._price = 0.0                                           # of being called by torch at all
        self._scale = 1.0
        self._light: list[Tensor] = []
        self._backwards = self.backwards = 0                        # in this window, and in all
        self.updates: Updates | OwnLoop | None = None
        self._handles: list[Any] = []
        self._backward_calls = BackwardCalls(self.light_backward, self.own.asked)
        self._clip_seen = self._early_clip_seen = False
        self.scaler = ScalerSteps(lambda: self.step, lambda optimizer: self._meet(optimizer) is not None, self._scaled_by)
        self.observer.on_backward, self.observer.after_backward, self.observer.on_call = self.begin_backward, self.end_backward, self._on_call
        for optimizer in optimizers:
            self._meet(optimizer)

    # -- attaching ------------------------------------------------------------------------------------------------------------------
    def attach(self) -> Monitor:
        if not self._handles:
            self.ranks.reopen()
            self._price = call_seconds()
            self._handles = [register_optimizer_step_pre_hook(self._before_step), register_optimizer_step_post_hook(self._after_step)]
            if self.log is not None:
                self.log.on_optimizer = self._optimizer_built
            self._backward_calls.attach()
            self.scaler.attach()
            self.open_window()
        return self

    def detach(self) -> None:
        attached = bool(self._handles)
        if self.observer.active and self._backwards and not self.step:
            self.observer.finish_step()                             # there was no step at all: what the first window saw is all there is
        self.observer.close()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.scaler.detach()
        if self.log is not None:
            self.log.on_optimizer = None
        self._backward_calls.detach()
        if attached and self.ranks.rank:
            self._hand_in()

    def __enter__(self) -> Monitor:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    # -- windows --------------------------------------------------------------------------------------------------------------------
    def open_window(self) -> None:
        """Begin the window that ends with the next optimizer step."""
        observer, schedule = self.observer, self.schedule
        self._backwards = 0
        self.steps.losses.begin()
        if self.ranks.channel is not None:
            schedule.agreed = self.ranks.join()
        self._brief = False
        if schedule.wants(self.step):
            self.norms, self.updates = {}, None
            observer.exact = self._exact or not self.steps.finite or schedule.dense(self.step)
            turn = schedule.observed // schedule.together
            if not observer.exact and turn >= FULL_FIRST and turn * GOLDEN % 1.0 >= self.full_share:
                self._brief = True
            elif not self.compiled():
                self._clip_seen = self._early_clip_seen = False
                observer.begin_pass(self.step, before_update=self.step == 0)
                observer.open()
                return
        if observer.active:
            observer.close()

    def compiled(self) -> bool:
        """Whether a model, or something it is made of, went through torch.compile."""
        return self.log is not None and self.log.compiled or facts.marked_compiled(self.observer.roots.known())

    @property
    def seconds(self) -> float:
        """Time spent in our own code so far, every step counted, with the price of being called at all."""
        observer, scope = self.observer, self.observer.scope
        return observer.seconds + scope.seconds + (observer.calls + scope.calls) * self._price

    def _optimizer_built(self, optimizer: torch.optim.Optimizer) -> None:
        """A new optimizer in the middle of a run begins a new phase: look closely from its first step on."""
        if self.step > 0 and not self.observer.active and self._backwards == 0 and not self.only:
            self.schedule.restart(self.step - 1)
            self.open_window()

    def begin_backward(self, depth: int = 4) -> None:
        """Just before backward, called `depth` frames from here, on a step that is seen in full: are last step's gradients still there?"""
        for known in (*self.optimizers, self.own):
            known.look_back()
        if self._backwards == 0:
            self._take_down()
            self._event("backward", span=self.observer.span_at(sys._getframe(depth)))

    def _take_down(self) -> None:
        """The forward of a step that is seen in full is over: note the parameters before they change."""
        self.book.take(self.observer)
        if self.waiting is None:
            self.waiting = self.optimizers.waiting()
        self.facts.before_update(self.observer)

    def end_backward(self) -> None:
        for known in (*self.optimizers, self.own):
            known.compare_back()
        parameters, given = (p for p, _ in self.book.records.values()), self.own.given
        self.norms = gradient_norms(parameters, given) if self.observer.exact or given else self._gradients.norms(parameters)

    def light_backward(self, loss: Tensor) -> None:
        """Every backward of every step: keep the loss; the gradient norm too as long as it is cheap."""
        observer = self.observer
        start = observer.clock()
        try:
            alone = not self.optimizers
            if alone and not self.own.begun:
                self.own.look_for_step()                            # the first one ended before the forward that led here
                observer.scope.on_again = None if self.own.begun or not observer.active else self.own.look_for_step
            self._backwards += 1
            self.backwards += 1
            with torch._C.DisableTorchFunction():                   # our own mode may be on
                if loss.numel() == 1:
                    self.steps.losses.take(loss)
                unseen = observer.here() and not observer.backward_seen       # the forward was too long to be seen to its end
                if unseen:
                    observer.backward_seen = True
                    self._take_down()
                if self._brief or unseen:
                    self.end_backward()
                elif not observer.active and self.optimizers and self.schedule.wants_norm(self.step, start):
                    self._norm_between()
                    self.schedule.norm_taken(observer.clock() - start)
            if alone and self.own.begun:
                self.own.end_step()
        except Exception as error:
            observer.fail(error)
        observer.seconds += observer.clock() - start
        if alone and self.own.begun:
            self._stepped()

    def _norm_between(self) -> None:
        """The gradient norm of a step that is not observed."""
        gradients = [p.grad for o in self.optimizers for p in o.parameters() if p.grad is not None and not p.grad.is_sparse]
        if gradients and not hasattr(gradients[0], "to_local"):
            self._light = list(torch._foreach_norm(gradients))

    def _scaled_by(self, scale: float) -> None:
        self._scale = float(scale) or 1.0

    def _on_call(self, kind: str, value: Any) -> None:
        if kind == "scale":
            self._scaled_by(value)
            self.facts.scaled = True
        elif value[1] == math.inf:                                # clipping at infinity is how many trainers measure the norm
            return
        elif not self._backwards and self.observer.asked is None:
            if not self._early_clip_seen:
                self._early_clip_seen = self.observer.early = True
                self._event("early_clip", span=value[2], value=value[1])
        elif not self._clip_seen:
            self._clip_seen = True
            if self.ranks.joined:
                self.ranks.clips.append(self.ranks.square(((p, self.norms.get(id(p))) for p, _ in self.book.records.values()), self._scale))
            name, threshold, span = value
            scaled = self._scale != 1.0 and still_scaled((p for p, _ in self.book.records.values()), self.norms)
            self._event(name, span=span, value=threshold, before=self._unscaled(global_norm(self.norms.values())), detail={"scale": self._scale} if scaled else {})

    def _unscaled(self, norm: float | None) -> float | None:
        return None if norm is None else norm / self._scale

    def _event(self, kind: str, **more: Any) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._counts[kind] <= 500:
            self.events.append(Event(kind, self.step, order=len(self.events), **more))

    # -- optimizer steps --------------------------------------------------------------------------------------------------------------
    def _meet(self, optimizer: torch.optim.Optimizer) -> KnownOptimizer | None:
        known = self.optimizers.find(optimizer)
        if known is None and (known := self.optimizers.meet(optimizer, before=int(self.own.begun))) is not None:
            self.observer.changed = True
            self.schedule.restart(self.step)
            self.schedule.together = max(1, len(self.optimizers))
        return known

    def _ours(self, optimizer: torch.optim.Optimizer) -> bool:
        watched = {id(p) for root in self.observer.roots.roots for p in root.parameters()}
        return any(id(p) in watched for group in optimizer.param_groups for p in group["params"])

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        met = self.optimizers.find(optimizer)
        if met is not None and not self.observer.active and met.stepped is not None:
            return
        start = self.observer.clock()
        try:
            known = self._meet(optimizer)
            if known is None:
                return
            if known.stepped is None:
                known.stepped = user_span(sys._getframe(1))
            if self.observer.active:
                alone = not any(a is not None for a in (*args, *kwargs.values()) if a is not optimizer)        # without a closure
                if self._backwards and not any(callable(a) for a in (*args, *kwargs.values()) if a is not optimizer):
                    self.observer.rest()                            # nothing to see inside a step without a closure
                elif alone and not self.observer.graph.empty:
                    self._without_backward()
                with torch._C.DisableTorchFunction():
                    known.updates.before(known.parameters())
                    self.updates = known.updates
                    if not self.norms and (self._backwards or not self.observer.graph.empty):
                        self.end_backward()
                    if self._backwards and alone:
                        known.take_stock(self.norms)
        except Exception as error:
            self.observer.fail(error)
        self.observer.seconds += self.observer.clock() - start

    def _without_backward(self) -> None:
        """The gradients come from elsewhere: from torch.autograd.grad, whose loss is that of the step if it asked for those of parameters."""
        self.observer.rest()
        self._take_down()
        if self.observer.asked is not None:
            self.steps.losses.take(self.observer.asked)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        observer = self.observer
        start = observer.clock()
        try:
            known = self._meet(optimizer)
            if known is None:
                return
            self.close_window(known)
            self.open_window()
        except Exception as error:
            observer.fail(error)
            observer.close()
        observer.seconds += observer.clock() - start
        self._stepped()

    def _stepped(self) -> None:
        """A step ended."""
        if self.on_step is not None:
            self.on_step(self)
        if self.max_steps is not None and self.step >= self.max_steps and self.stop is not None:
            self.stop()

    def close_window(self, known: Stepping) -> None:
        observer, step = self.observer, self.step
        observed = observer.active or self._brief
        norm: float | None = None
        if observed:
            norm = self._finish_step(known)
        elif self._light:
            norm = math.sqrt(sum(n * n for n in torch.stack([n.float() for n in self._light]).tolist())) / self._scale
            self._light = []
        rate = known.step_ended()
        self.steps.ended(step, self._scale, norm, rate, self._backwards, observed and known.stale, known.number, observed=observed)
        self.step = step + 1
        if observed:
            if observer.active and known.look():
                observer.changed = True
            self.schedule.done(step)
            if self.on_observed is not None:
                observer.close()
                self.on_observed(self)
        self.schedule.spent = self.seconds

    def _finish_step(self, known: Stepping) -> float | None:
        """Turn what was seen of an observed step into numbers; the global gradient norm, None without any gradient."""
        observer = self.observer
        add_rows(self.parameter_steps, self.step, self.norms, self._scale, {} if self.updates is None else self.updates.finish())
        if not self._brief:
            known.seen_in_full(self._backwards)
            observer.finish_step()
        if self.ranks.joined:
            self.ranks.take(self.step, ((p, self.norms.get(id(p))) for p in known.parameters()), self._scale)
        return self._unscaled(global_norm(map(self.norms.get, known.held)))

    # -- result ---------------------------------------------------------------------------------------------------------------------
    def recording(self, kind: str = "run", *, since: int = -1, **probe: Any) -> Recording:
        """Everything seen so far, as an immutable record; its time series only from after step `since`."""
        return recorded(self, kind, since, probe)

    def first_look(self, **probe: Any) -> Recording:
        """What an audit sees: one forward and backward, before any optimizer step."""
        recording = self.recording("audit", **probe)
        return replace(recording, parameter_steps={
            record.name: (gradient_row(0, self.norms.get(key), self._scale),) for key, (_, record) in self.book.records.items()})

    def gathered(self, kind: str = "run", **probe: Any) -> Recording:
        """The recording over all ranks of a distributed training (on another rank than 0: its own, after handing it in); else `recording()`."""
        recording = self.recording(kind, **probe) if kind == "run" else self.first_look(**probe)
        return self.ranks.merged(recording, lambda: share_of(self, recording), final=not self._handles)

    def _hand_in(self) -> None:
        """On another rank than 0: leave what was seen for rank 0's report."""
        try:
            self.gathered()
        except Exception as error:
            self.observer.fail(error)
