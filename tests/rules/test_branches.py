"""A short residual branch may start quiet; a plain stack under one skip around everything may not."""
import torch
from torch import nn

import gradcheck_doctor as doctor


class Stream(nn.Module):
    """A stem, residual branches of three layers drawn from N(0, 0.02), a head."""

    def __init__(self, depth):
        super().__init__()
        self.stem, self.head = nn.Linear(16, 16), nn.Linear(16, 4)
        self.branches = nn.ModuleList(self.branch(depth) for _ in range(3))

    @staticmethod
    def branch(depth):
        layers = [m for _ in range(depth) for m in (nn.Linear(16, 16), nn.GELU())][:-1]
        for layer in layers[::2]:
            nn.init.normal_(layer.weight, std=0.02)
        return nn.Sequential(nn.LayerNorm(16), *layers)

    def forward(self, x):
        x = self.stem(x)
        for branch in self.branches:
            x = x + branch(x)
        return self.head(x)


class Around(nn.Module):
    """One skip from the input to the output: the stack under it is the network."""

    def __init__(self):
        super().__init__()
        self.net = Stream.branch(4)[1:]

    def forward(self, x):
        return x + self.net(x)


def severities(model):
    report = doctor.audit(model, torch.randn(32, 16))
    return {f.code: f.severity for f in report.findings}


def test_a_short_branch_beside_the_stream_is_no_more_than_info():
    found = severities(Stream(3))
    assert found and set(found.values()) == {"info"}


def test_a_long_one_is_a_network_of_its_own():
    assert severities(Stream(8))["GD102"] in ("warning", "error")


def test_a_skip_around_the_whole_network_saves_nothing():
    assert severities(Around())["GD102"] in ("warning", "error")
