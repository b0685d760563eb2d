"""Loops that change the weights themselves, with no optimizer of torch to tell when a step ends."""
from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradcheck_doctor.observe.optimizers import Stepping
from gradcheck_doctor.observe.updates import Updates, sample
from gradcheck_doctor.records.recording import OptimizerGroup, OptimizerRecord
from gradcheck_doctor.records.sites import Span

if TYPE_CHECKING:
    from gradcheck_doctor.observe.watch import Monitor

OFTEN = 64             # looks at the weights; then after twice, four times as many
ALIKE = 0.01           # by how much the ratios of change and gradient may differ for one learning rate to explain them


class OwnLoop(Stepping):
    """What a monitor knows of such a loop, as it knows it of an optimizer.

    `held` are the parameters that it was seen to change. Weights that moved from one backward to the next, although no optimizer stepped, show that
    it is one (`begun`). Its steps then end with backward: the weights change between two of them, behind the gradients of one step and in front of
    the forward of the next.
    """

    name = "the loop's own update"
    begun = False
    moving = False                          # the weights changed since `compare`, or will before the window ends

    def __init__(self, monitor: Monitor) -> None:
        super().__init__(0)
        self._monitor, self._observer, self._book = monitor, monitor.observer, monitor.book
        self._updates = Updates()
        self._gradients: dict[int, float] = {}                      # rms of a sample of each gradient, when the weights were looked at
        self._rates: list[float] = []                               # one of each look at what changed; nan where no rate explains it
        self.norms: dict[int, float | None] = {}                    # of the gradients of the first backward
        self.given: dict[int, Tensor] = {}                          # while a call of torch.autograd.grad is looked at: its gradients, by id of the parameter
        self._asked = 0                                             # how often `moved` was

    def parameters(self) -> list[Tensor]:
        """Those of modules, and bare tensors that are used as weights."""
        known = [p for p, _ in self._book.records.values()]
        bare = [p for node in self._observer.graph.nodes for p in node.parameters if p.is_leaf]
        return list({id(p): p for p in (*known, *bare)}.values())

    def some(self, number: int) -> Iterator[Tensor]:
        """The first few parameters that it was seen to change."""
        return itertools.islice((p for p in self.parameters() if id(p) in self.held), number)

    def look(self) -> bool:
        """As of an optimizer's groups: nothing new."""
        return False

    def compare(self) -> None:
        """The weights as they are now, behind a backward, are those that the next look at them is compared with."""
        self.moving = True
        with torch._C.DisableTorchFunction():
            parameters = self.parameters()
            self._updates.before(parameters)
            found = ((id(p), self.given.get(id(p)) if self.given else p.grad) for p in parameters)
            held = [(key, g) for key, g in found if g is not None and not g.is_sparse and g.numel()]
            norms = torch.stack([sample(g).float().square().mean() for _, g in held]).sqrt().tolist() if held else []
            self._gradients = {key: norm for (key, _), norm in zip(held, norms, strict=True)}

    def finish(self) -> dict[int, tuple[list[float], int]]:
        """What became of the weights since `compare`, as `Updates.finish` gives it."""
        with torch._C.DisableTorchFunction():
            found = self._updates.finish()
        ratios = [row[1] / self._gradients[key] for key, (row, _) in found.items() if row[1] > 0.0 and self._gradients.get(key, 0.0) > 0.0]
        self.held.update(key for key, (row, _) in found.items() if row[1] > 0.0)
        alike = ratios and max(ratios) <= (1.0 + ALIKE) * min(ratios)
        self._rates.append(median(ratios) if alike else math.nan)
        return found

    def moved(self, norms: dict[int, float | None]) -> bool:
        """Have the weights changed since the first backward, which left gradients of these `norms`? Looks ever more rarely."""
        self._asked += 1
        if self._asked == 1:
            self.norms = norms
            self.compare()
        elif self._asked <= OFTEN or self._asked.bit_count() == 1:
            self.finish()
            self.begun = bool(self.held)
        return self.begun

    # -- steps ----------------------------------------------------------------------------------------------------------------------
    def look_for_step(self) -> None:
        """Behind a backward, or where a forward begins after one: do the weights move without an optimizer?"""
        monitor = self._monitor
        norms = monitor.norms
        if not monitor.optimizers and self.moved(norms):
            monitor.norms = self.norms
            self.end_step()
            monitor.norms, self.moving = norms, False               # what the first step changed is counted

    def end_step(self) -> None:
        """A step of a loop that changes the weights itself ended: they change in the window that opens."""
        monitor, observer = self._monitor, self._observer
        if observer.active:
            observer.rest()
            monitor.updates = self if self.moving else None
        monitor.close_window(self)
        monitor.open_window()
        if observer.active:
            self.compare()

    def asked(self, loss: Tensor, given: dict[int, Tensor]) -> None:
        """torch.autograd.grad gave gradients of leaves, by their ids: where no optimizer is, that of a weight is the backward of a step."""
        monitor, observer, start = self._monitor, self._observer, self._observer.clock()
        try:
            ours = not monitor.optimizers and (self.begun or self._holds_some(given))
            if ours and observer.here() and not observer.backward_seen:
                self._asked_in_full(loss, given)
        except Exception as error:
            observer.fail(error)
            return
        finally:
            observer.seconds += observer.clock() - start
        if ours:
            self.given = given
            try:
                monitor.light_backward(loss)
            finally:
                self.given = {}

    def _asked_in_full(self, loss: Tensor, given: dict[int, Tensor]) -> None:
        """On a step that is seen in full: what `Observer` tells of other backwards."""
        monitor, observer = self._monitor, self._observer
        with torch._C.DisableTorchFunction():
            if (maker := observer.graph.maker(loss)) is not None:
                observer.loss_nodes.append(maker)
            self.given = given
            try:
                monitor.begin_backward(depth=4)
                observer.backward_seen = True
                monitor.end_backward()
            finally:
                self.given = {}

    def _holds_some(self, given: dict[int, Tensor]) -> bool:
        """Whether there is a weight among these leaves, and no optimizer that waits for its gradients."""
        weights = given.keys() & {id(p) for p in self.parameters()}
        return bool(weights) and not any(o.held & weights for o in self._monitor.optimizers.waiting())

    def record(self, names: Mapping[int, str], place: Span | None) -> OptimizerRecord:
        """Like an optimizer's: the rate is the ratio of change and gradient, nan where that is not one number; `place` is where the weights change."""
        known = [rate for rate in self._rates if not math.isnan(rate)]
        lr = float(f"{median(known):.3g}") if known and 2 * len(known) >= len(self._rates) else math.nan
        group = OptimizerGroup(lr=lr, parameters=tuple(names[key] for key in self.held if key in names))
        return OptimizerRecord(self.name, (group,), stepped=place, steps=self.steps, own=True)
