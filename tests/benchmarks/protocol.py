"""How two training loops are compared on a noisy machine: one step each in turn, in one process, CPU time of the thread beside the wall.

A variant is a whole training run of its own (own copy of the model, own optimizer, own random state, same seed, same data), so the losses of all
variants must be bit for bit the same. Two bare runs are always among them: the ratio of one to the other is the noise of the measurement.
"""
from __future__ import annotations

import copy
import gc
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks.models import Workload


class Tool:
    """What a variant adds to the loop. The bare loop adds nothing."""

    name = "bare"
    covers = "-"

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Once, before the first step; not timed."""

    def before_step(self) -> None:
        """Before the forward pass; timed."""

    def after_backward(self) -> None:
        """Between backward and optimizer.step; timed."""

    def after_step(self, loss: Tensor) -> None:
        """After optimizer.step; timed."""

    def inside(self) -> float | None:
        """Seconds spent inside the tool's own callbacks since the last call; None when the tool does not say."""
        return None

    def close(self) -> None:
        """Once, at the end; not timed."""


@dataclass
class Run:
    """One variant's run: seconds of each step by two clocks."""

    tool: Tool
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Any
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    state: Tensor
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    inside: list[float | None] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def step(self) -> None:
        torch.set_rng_state(self.state)
        x, y = next(self.batches)
        tool = self.tool
        wall, cpu = time.perf_counter(), time.thread_time()
        tool.before_step()
        loss = self.loss(self.model, x, y)
        loss.backward()
        tool.after_backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        tool.after_step(loss)
        self.cpu.append(time.thread_time() - cpu)
        self.wall.append(time.perf_counter() - wall)
        self.inside.append(tool.inside())
        self.state = torch.get_rng_state()
        self.losses.append(loss.item())


def interleave(workload: Workload, tools: Iterable[Tool], rounds: int, warm: int = 3) -> list[Run]:
    """Run every tool for `rounds` counted steps after `warm` others, one step each in turn; raises if any two losses differ by one bit."""
    torch.manual_seed(0)
    origin = workload.build()
    runs = []
    for tool in tools:
        model = copy.deepcopy(origin)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        tool.attach(model, optimizer)
        runs.append(Run(tool, model, optimizer, workload.batches(), workload.loss, torch.Generator().manual_seed(3).get_state()))
    gc.collect()
    gc.disable()
    try:
        for index in range(warm + rounds):
            shift = index % len(runs)                          # no variant always follows the same one
            for run in runs[shift:] + runs[:shift]:
                run.step()
            if index % 10 == 9:
                gc.collect()
    finally:
        gc.enable()
        for run in runs:
            run.tool.close()
    check_equal(runs)
    for run in runs:
        del run.cpu[:warm], run.wall[:warm], run.inside[:warm]
    return runs


def check_equal(runs: list[Run]) -> None:
    """Losses and final weights of all runs are bitwise those of the first."""
    first = runs[0]
    for run in runs[1:]:
        if run.losses != first.losses:
            raise AssertionError(f"{run.tool.name} changed the losses: {first.losses} became {run.losses}")
        if not all(torch.equal(a, b) for a, b in zip(first.model.parameters(), run.model.parameters(), strict=True)):
            raise AssertionError(f"{run.tool.name} changed the weights")


@dataclass(frozen=True)
class Ratio:
    """Quartiles of a ratio over the rounds, no unit."""

    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.3f} ({self.low:.3f} to {self.high:.3f})"


def ratio(values: list[float], base: list[float]) -> Ratio:
    """Quartiles of value / base, round by round (neighbours in time share the machine's mood)."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(values, base, strict=True)], n=4)
    return Ratio(low, middle, high)


def attributed(run: Run, base: Run) -> Ratio | None:
    """Step without the tool's callbacks plus the callbacks, over the step without them: 1 + inside / median bare step (wall: the doctor's own clock)."""
    usual = statistics.median(base.wall)
    seconds = [s for s in run.inside if s is not None]
    if len(seconds) < 2:
        return None
    low, middle, high = statistics.quantiles([1 + s / usual for s in seconds], n=4)
    return Ratio(low, middle, high)
