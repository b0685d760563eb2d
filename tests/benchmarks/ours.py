"""The doctor as a variant of the loop."""
from __future__ import annotations

import time

import torch
from torch import nn

from gradcheck_doctor.observe.watch import FULL_FIRST, Monitor
from tests.benchmarks.models import Workload
from tests.benchmarks.protocol import Tool


class Doctor(Tool):
    """Attached around its own steps only, because other runs take their turn between them; attaching and detaching is timed with the step."""

    covers = "see docs/performance.md"

    def __init__(self, every: int | str, name: str | None = None, *, exact: bool = False) -> None:
        self.every, self.exact = every, exact
        self.name = name or f"doctor, every={every}"

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.monitor = Monitor([model], [optimizer], self.every, exact=self.exact)
        self.before, self.left = 0.0, time.perf_counter()

    def before_step(self) -> None:
        self.monitor.schedule.started += time.perf_counter() - self.left       # the others' turns are no running time of this one
        self.monitor.attach()

    def after_step(self, loss: torch.Tensor) -> None:
        self.monitor.detach()
        self.left = time.perf_counter()

    def inside(self) -> float:
        spent = self.monitor.seconds
        seconds, self.before = spent - self.before, spent
        return seconds

    def close(self) -> None:
        failure = self.monitor.observer.failure
        if failure is not None:
            raise AssertionError(f"observing stopped: {failure!r}") from failure


class Later(Doctor):
    """A watch that is already `first` steps old: the dense start is behind it, and the first step, which is seen in full, is not to be counted.

    With `full` it looks at everything on each observed step, as a watch does that observes every fourth step or fewer.
    """

    def __init__(self, every: int, name: str | None = None, first: int = 1000, *, full: bool = False) -> None:
        super().__init__(every, name or f"every={every}, after step {first}")
        self.first, self.full = first, full

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().attach(model, optimizer)
        self.monitor.step = self.first
        self.monitor.schedule.observed = FULL_FIRST
        if self.full:
            self.monitor.full_share = 1.0


class Idle(Doctor):
    """Attached, but past the steps it observes."""

    def __init__(self) -> None:
        super().__init__(every=10**9, name="doctor, idle step")

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().attach(model, optimizer)
        self.monitor.step = 1000


def alone(workload: Workload, every: int | str, steps: int) -> tuple[list[float], list[bool], float]:
    """One watched loop, attached once: seconds in our callbacks on each of `steps`, which of these were observed, seconds of the rest of a step (mean).

    With a number for `every` past the first 64 observed steps; with "auto" from the first step on, which looks at the model for the first time.
    """
    torch.manual_seed(0)
    model, batches = workload.build(), workload.batches()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    inside, observed, wall = [], [], 0.0

    def step() -> None:
        x, y = next(batches)
        workload.loss(model, x, y).backward()
        optimizer.step()
        optimizer.zero_grad()

    if every == "auto":
        step()                                                      # torch's own first step is slow
    with Monitor([model], [optimizer], every) as monitor:
        if every != "auto":
            for _ in range(10):
                step()
            monitor.step, monitor.schedule.observed = 1000, FULL_FIRST
        for _ in range(steps):
            seen, spent, start = monitor.schedule.observed, monitor.seconds, time.perf_counter()
            step()
            wall += time.perf_counter() - start
            inside.append(monitor.seconds - spent)
            observed.append(monitor.schedule.observed > seen)
    return inside, observed, (wall - sum(inside)) / steps
