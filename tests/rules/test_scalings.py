"""A division by a constant in front of a layer: where it leaves nothing, and where it is meant."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradcheck_doctor as doctor


class Bag(nn.Module):
    """A label for each bag of 20 tokens."""

    def __init__(self, pooled, norm=False):
        super().__init__()
        self.embed, self.token = nn.Embedding(50, 16), nn.Linear(16, 32)
        self.head = nn.Sequential(nn.LayerNorm(32) if norm else nn.Identity(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        self.pooled = pooled

    def forward(self, x):
        return self.head(self.pooled(torch.relu(self.token(self.embed(x)))))


def chokes(model, shuffled=False, rate=0.1):
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    with doctor.watch(model, optimizer) as seen:
        for _ in range(100):
            x = torch.randint(0, 50, (64, 20))
            y = torch.randint(0, 2, (64,)) if shuffled else ((x < 25).sum(1) > 10).long()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return seen.report()


@pytest.mark.parametrize("pooled", [lambda h: h.sum(1) / 4000, lambda h: h.sum(1) * 2.5e-4, lambda h: h.mean(1) / 200])
def test_a_sum_divided_by_far_more_than_its_number(pooled):
    torch.manual_seed(0)
    first, *others = [f for f in chokes(Bag(pooled)).findings if f.severity != "info"]
    assert first.rule == "gradient-choke" and first.location.file.endswith("test_scalings.py")
    assert {f.fingerprint for f in others} <= set(first.related)


@pytest.mark.parametrize(("pooled", "norm"), [(lambda h: h.sum(1) / 20, False), (lambda h: h.mean(1) / 8, False), (lambda h: h.sum(1) / 4000, True)],
                         ids=["a mean", "a temperature", "a norm behind"])
def test_a_division_that_leaves_enough(pooled, norm):
    torch.manual_seed(0)
    assert not chokes(Bag(pooled, norm), shuffled=True).has("gradient-choke")             # noise: the loss goes nowhere for another reason


def test_a_run_that_learns_all_the_same():
    torch.manual_seed(0)
    model = Bag(lambda h: h.sum(1) / 4000)
    with torch.no_grad():
        model.head[1].weight *= 200
    assert not chokes(model).has("gradient-choke")
