"""x * x as a hidden activation, and squares that are none."""
import pytest
import torch
import torch.nn.functional as F
from loops import fitted
from torch import nn


# a test below names the line of the product
class Square(nn.Module):
    def forward(self, x):
        return x * x


class SquaredRelu(nn.Module):
    def forward(self, x):
        x = torch.relu(x)
        return x * x


class Normed(nn.Module):
    def forward(self, x):
        return x / (x * x).mean(-1, keepdim=True).sqrt()


def findings(act, lr=1e-3, depth=5):
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(16, 16), act)], nn.Linear(16, 1))
    for layer in model[::2]:
        nn.init.kaiming_normal_(layer.weight)
    report = fitted(model, ((x := torch.randn(64, 16), x[:, :1]) for _ in range(60)), F.mse_loss, lr)
    return [f for f in report.findings if f.severity != "info"]


def test_squares_written_as_products_are_the_cause():
    first, *others = findings(Square())
    assert first.rule == "unbounded-activation" and first.severity == "error" and first.location.line == 12
    assert {f.fingerprint for f in others} <= set(first.related)
    assert first.fixes[0].prescription.treatment == "replace-activation" and "He init" not in first.fixes[0].prescription.title


@pytest.mark.parametrize("act", [SquaredRelu(), Normed()], ids=["squared ReLU", "a norm by hand"])
def test_squares_that_are_no_activation(act):
    assert "unbounded-activation" not in [f.rule for f in findings(act)]
