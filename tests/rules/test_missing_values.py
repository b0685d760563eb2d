"""NaN that marks what is missing is data; NaN that a layer or the loss gets is a fault."""
import pytest
import torch
from torch import nn

from gradcheck_doctor.observe.watch import Monitor
from gradcheck_doctor.rules.engine import diagnose


class Net(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.fill, self.way = nn.Parameter(torch.zeros(6)), way
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x):
        return self.body(self.way(x, self.fill)).squeeze(1)


def centred(x, fill):
    away = x - 1.0
    return torch.where(torch.isnan(away), fill, away)


def squared(out, y):
    known = ~torch.isnan(y)
    return (out - y)[known].pow(2).mean()


def found(way, loss, missing_targets=False, code="GD801"):
    torch.manual_seed(0)
    model = Net(way)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with Monitor([model], [optimizer], every=1) as monitor:
        for _ in range(6):
            x, y = torch.randn(32, 6), torch.randn(32)
            x[::5, 2] = float("nan")
            if missing_targets:
                y[::3] = float("nan")
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
    return [(f.severity, f.op) for f in diagnose(monitor.recording()) if f.code == code]


@pytest.mark.parametrize("way", [lambda x, fill: torch.where(torch.isnan(x), fill, x), centred, lambda x, fill: x.nan_to_num(0.0) + 0 * fill])
def test_missing_values_that_are_replaced_before_the_first_layer(way):
    assert found(way, nn.functional.mse_loss) == [] and found(way, squared, missing_targets=True) == []


@pytest.mark.parametrize("way", [lambda x, fill: x + fill, lambda x, fill: torch.where(torch.isinf(x), fill, x)])
def test_missing_values_that_a_layer_gets(way):
    assert found(way, nn.functional.mse_loss) == [("error", "input")]


def test_missing_targets_that_the_loss_gets():
    assert found(centred, lambda out, y: (out - y).pow(2).mean(), missing_targets=True, code="GD803")[0][0] == "error"
