"""Theory tested by experiment."""
import math

import pytest
import torch
from torch import nn

from gradcheck_doctor.theory.activations import activation, names
from gradcheck_doctor.theory.propagation import expected_attenuation


@pytest.mark.parametrize("name", [n for n in names() if hasattr(torch.nn.functional, n) and n not in ("rrelu", "prelu")])
def test_moments_agree_with_a_million_samples(name):
    function = getattr(torch.nn.functional, name)
    x = torch.randn(1_000_000, dtype=torch.float64).requires_grad_()
    y = function(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    theory = activation(name)
    assert theory.second_moment == pytest.approx(y.detach().square().mean().item(), abs=0.01)
    assert theory.slope_moment == pytest.approx(slope.square().mean().item(), abs=0.01)


@pytest.mark.parametrize(("name", "gain"), [("relu", math.sqrt(2)), ("relu", math.sqrt(1 / 3)), ("tanh", 1.0)])
def test_backward_attenuation_of_a_deep_net(name, gain):
    width, depth = 256, 10
    layers = [nn.Linear(width, width, bias=False) for _ in range(depth)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=gain / math.sqrt(width))
    h = torch.randn(64, width)
    first = None
    for layer in layers:
        z = layer(getattr(torch, name)(h))
        z.retain_grad()
        first = z if first is None else first
        h = z
    z.backward(torch.randn_like(z))
    measured = first.grad.norm() / z.grad.norm()
    _, expected = expected_attenuation([(gain, activation(name))] * (depth - 1))
    assert 0.25 < measured.item() / expected < 16          # tanh shrinks its own input, which the one-step formula does not know
