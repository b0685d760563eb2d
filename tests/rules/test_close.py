"""A signal that leaves the healthy band by a hair's breadth: a warning by itself, information beside a certain cause."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradcheck_doctor as doctor


def severities(smaller, last):
    """Severities by rule: six layers whose signal, as measured at first, is `smaller` of what it was, trained on noise."""
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(5) for m in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 4), *last)
    x, y = torch.randn(64, 32), torch.randn(64, 4)
    for layer in model[:11:2]:
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        first = model[0](x).std(0).square().mean().sqrt()
        now = model[:11](x).std(0).square().mean().sqrt() / first
        for layer in model[2:11:2]:
            layer.weight *= (smaller / now) ** 0.2
    optimizer = torch.optim.SGD(model.parameters(), 1e-5)
    with doctor.watch(model, optimizer) as seen:
        for _ in range(40):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
    return {f.rule: f.severity for f in seen.report().findings}


@pytest.mark.parametrize(("smaller", "last", "severity"), [(0.008, (), "warning"), (0.008, (nn.ReLU(),), "info"), (0.002, (nn.ReLU(),), "warning")],
                         ids=["alone", "beside a cause", "further off"])
def test_a_hairs_breadth(smaller, last, severity):
    found = severities(smaller, last)
    assert ("output-activation-mismatch" in found) == bool(last)
    assert (found["signal-collapse"], found["missing-normalization"]) == (severity, severity)
