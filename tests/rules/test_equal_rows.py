"""Rows of a model's own parameters that start equal: those that training keeps equal, and the designs that come apart by themselves."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradcheck_doctor as doctor


class Mixture(nn.Module):
    """Log-likelihood of four normal distributions."""

    def __init__(self, start):
        super().__init__()
        self.means, self.log_std = nn.Parameter(start), nn.Parameter(torch.zeros(4, 3))

    def forward(self, x):
        z = (x[:, None] - self.means) / self.log_std.exp()
        return (-0.5 * z.square().sum(-1) - self.log_std.sum(-1)).logsumexp(1)


class Tokens(nn.Module):
    """Attention over tokens with positions, one class token and low-rank corrections, all from zeros; `registers` class tokens alike."""

    def __init__(self, registers=1, mean=False):
        super().__init__()
        self.place, self.cls = nn.Parameter(torch.zeros(1, 6, 16)), nn.Parameter(torch.zeros(1, registers, 16))
        self.a, self.b = nn.Parameter(torch.randn(4, 16)), nn.Parameter(torch.zeros(16, 4))
        self.mix, self.out, self.mean = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), nn.Linear(16, 3), mean

    def forward(self, x):
        x = x + self.place
        if self.mean:
            return self.out(x.mean(1))
        x = x + x @ self.a.T @ self.b.T
        return self.out(self.mix(torch.cat([self.cls.expand(len(x), -1, -1), x], 1))[:, :self.cls.shape[1]].mean(1))


class Scaled(nn.Module):
    """A gain and a shift of each channel, and an output layer of zeros by hand."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(16, 8)
        self.gain, self.shift, self.out = nn.Parameter(torch.ones(1, 8)), nn.Parameter(torch.zeros(8, 1)), nn.Parameter(torch.zeros(8, 3))

    def forward(self, x):
        x = torch.tanh(self.body(x.mean(1))) * self.gain
        return (x.T + self.shift).T @ self.out


def found(model, loss, steps=60):
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with doctor.watch(model, optimizer) as seen:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
    return [f for f in seen.report().findings if f.rule == "symmetric-init"]


def likelihood(model):
    return -model(torch.randn(64, 3) + torch.randint(0, 2, (64, 1)) * 4).mean()


def classes(model):
    x = torch.randn(32, 6, 16)
    return F.cross_entropy(model(x), x[:, 0, :3].argmax(1))


def test_components_that_start_at_one_mean_stay_one():
    [finding] = found(Mixture(torch.zeros(4, 3)), likelihood)
    assert finding.severity == "warning" and finding.location.line == 15
    assert finding.message.startswith("the 4 rows of means and of log_std start equal (zeros)")


def test_tokens_that_start_equal_stay_one():
    [finding] = found(Tokens(registers=2), classes)
    assert "the 2 rows of cls start equal" in finding.message


@pytest.mark.parametrize(("make", "loss"), [(lambda: Mixture(torch.randn(4, 3)), likelihood), (Tokens, classes), (lambda: Tokens(mean=True), classes),
                                            (Scaled, classes)], ids=["random means", "position and class tokens", "positions of a mean", "gains and an output"])
def test_zeros_that_come_apart_are_quiet(make, loss):
    torch.manual_seed(0)
    assert found(make(), loss) == []


def test_a_few_steps_say_nothing():
    assert found(Mixture(torch.zeros(4, 3)), likelihood, steps=10) == []
