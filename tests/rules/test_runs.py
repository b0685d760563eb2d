"""Where a run of layers ends, and what is said of inputs and updates is what was measured."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradcheck_doctor as doctor
from gradcheck_doctor.observe.watch import Monitor
from gradcheck_doctor.records.recording import OptimizerGroup, OptimizerRecord, ParameterRecord, ParameterStep, Recording, StepRecord
from gradcheck_doctor.rules.flow import runs
from gradcheck_doctor.rules.optimizer.learning_rate import LearningRateTooHigh
from gradcheck_doctor.rules.progress import progress


class Reverse(torch.autograd.Function):
    """Hands the value on and 1e-4 of the gradient, reversed."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -1e-4 * g


def mlp(*sizes):
    return nn.Sequential(*(m for i, o in zip(sizes, sizes[1:]) for m in (nn.Linear(i, o), nn.SiLU())))


class Through(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.low, self.high, self.between = mlp(8, 32, 32), mlp(32, 32, 1), between

    def forward(self, x):
        return self.high(self.between(self.low(x)))


@pytest.mark.parametrize(("between", "lengths"), [(Reverse.apply, [2, 2]), (lambda x: x.view_as(x), [4])])
def test_a_run_ends_at_a_gradient_of_the_users_own(between, lengths):
    report = doctor.audit(Through(between), torch.randn(64, 8))
    assert [len(r.layers) for r in runs(report.recording)] == lengths
    assert lengths == [4] or not {"GD304", "GD501"} & {f.code for f in report.findings}


@pytest.mark.parametrize(("apart", "lengths"), [(True, [2, 2]), (False, [4])])
def test_a_run_ends_between_networks_with_optimizers_of_their_own(apart, lengths):
    low, high = mlp(8, 32, 32), mlp(32, 32, 1)
    optimizers = [torch.optim.SGD(m.parameters(), 1e-2) for m in (low, high)] if apart else [torch.optim.SGD([*low.parameters(), *high.parameters()], 1e-2)]
    with Monitor([low, high], optimizers, every=1) as monitor:
        for _ in range(3):
            high(low(torch.randn(32, 8))).mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    assert [len(r.layers) for r in runs(monitor.recording())] == lengths


class Counts(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.body, self.way = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)), way

    def forward(self, x):
        return self.body(self.way(x))


@pytest.mark.parametrize(("way", "said"), [
    (torch.log1p, ""), (lambda x: x / 1000, ""), (lambda x: x, "features of"), (lambda x: x.reshape(-1, 6), "features of"),
    (lambda x: x - 1.0, "features of"), (lambda x: x * 0.05, "what the first layer gets")])
def test_inputs_are_judged_by_what_reaches_the_first_layer(way, said):
    x = torch.rand(64, 6) * torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1000.0])
    found = [f.message for f in doctor.audit(Counts(way), (x, torch.randint(3, (64,))), loss=F.cross_entropy).findings if f.code == "GD507"]
    assert bool(found) == bool(said) and all(m.startswith(said) for m in found)


@pytest.mark.parametrize(("early", "said"), [(0.3, "changes the weights by 0.005 of their size a step, and by 0.3 in one of the first 12 (limit"),
                                             (0.05, "changes the weights by 0.05 of their size a step (limit")])
def test_the_first_updates_are_not_told_as_those_of_the_run(early, said):
    w = ParameterRecord("w", "", "weight", (8, 8), 64, True, rms=1.0)
    ratios = [early] * 12 + [0.005 if early > 0.1 else early] * 88
    record = OptimizerRecord("SGD", (OptimizerGroup(0.3, ("w",)),))
    recording = Recording("run", parameters=(w,), steps=tuple(StepRecord(i, 1.0, 1.0) for i in range(100)), curve=tuple((i, 1.0) for i in range(100)),
                          total_steps=100, optimizers=(record,),
                          parameter_steps={"w": tuple(ParameterStep(i, 1.0, update_ratio=r) for i, r in enumerate(ratios))})
    found, = LearningRateTooHigh().check(recording)
    assert said in found.message


@pytest.mark.parametrize(("start", "end", "expected"), [((3.0, 20.0, 300.0), 3.0, 0.0), ((3.0, 20.0, 300.0), 1.0, 2 / 3), ((3.0, 3.2, 2.9), 1.5, 0.5)])
def test_what_the_first_steps_raised_is_no_progress(start, end, expected):
    """A first step that throws the loss up by a factor of a hundred."""
    losses = [*start, *[start[-1]] * 7, *[end] * 90]
    recording = Recording("run", curve=tuple(enumerate(losses)), total_steps=100)
    assert progress(recording) == pytest.approx(expected, abs=0.02)
