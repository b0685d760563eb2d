"""Attention whose first softmax chooses one key, beside attention that is as it should be."""
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradcheck_doctor as doctor

X = torch.randn(64, 8, 48, generator=torch.Generator().manual_seed(0))
Y = (X[:, :, 0].mean(1) > 0).long()


class Attention(nn.Module):
    def __init__(self, scaled=True, std=None, scores=None):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(48, 48, bias=False) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 2)
        self.scaled, self.scores = scaled, scores
        for layer in (self.q, self.k, self.v):
            if std:
                nn.init.normal_(layer.weight, std=std)
            else:
                nn.init.xavier_uniform_(layer.weight)

    def forward(self, x):
        scores = self.q(x) @ self.k(x).transpose(1, 2)
        if self.scaled:
            scores = scores / math.sqrt(48)
        if self.scores is not None:
            scores = self.scores(scores)
        return self.head(self.norm((F.softmax(scores, dim=-1) @ self.v(x)).mean(1)))


def found(model):
    return [f for f in doctor.audit(model, (X, Y), F.cross_entropy).findings if f.rule in ("init-scale", "saturated-activation")]


def test_weights_of_queries_and_keys_that_are_far_too_large():
    cause, symptom = found(Attention(std=1.0))
    assert (cause.rule, cause.severity, cause.modules) == ("init-scale", "warning", ("q", "k")) and "queries and keys" in cause.message
    assert cause.fixes[0].prescription.treatment == "initialise" and symptom.fingerprint in cause.related


def test_scores_that_are_not_divided():
    finding, = found(Attention(scaled=False, std=0.3))
    assert (finding.rule, finding.severity, finding.fixes[0].prescription.treatment) == ("saturated-activation", "warning", "scale-scores")
    assert "not divided by sqrt(48)" in finding.message


HARMLESS = {
    "as it should be": {},
    "a mask that leaves one key": {"scores": lambda s: s.masked_fill(~torch.eye(8, dtype=torch.bool), -math.inf)},
    "a causal mask": {"scores": lambda s: s + torch.full((8, 8), -1e9).triu(1)},
    "undivided, with weights that are small enough": {"scaled": False, "std": 48 ** -0.75},
}


@pytest.mark.parametrize("how", HARMLESS.values(), ids=HARMLESS)
def test_attention_that_looks_alike(how):
    assert found(Attention(**how)) == []


class TalkingHeads(nn.Module):
    """The weights of the heads are mixed in front of the softmax and behind it (Shazeer et al. 2020)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.before, self.behind, self.head = nn.Linear(48, 144), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(48, 2)

    def forward(self, x):
        q, k, v = self.qkv(x).view(64, 8, 3, 4, 12).permute(2, 0, 3, 1, 4)
        scores = self.before((q @ k.mT / 12**0.5).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weights = self.behind(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head((weights @ v).transpose(1, 2).reshape(64, 8, 48).mean(1))


def test_talking_heads_are_no_hidden_softmax():
    assert not doctor.audit(TalkingHeads(), (X, Y), F.cross_entropy).has("hidden-softmax")
    sick = nn.Sequential(nn.Flatten(), nn.Linear(384, 32), nn.Softmax(-1), nn.Linear(32, 2))
    assert doctor.audit(sick, (X, Y), F.cross_entropy).has("hidden-softmax")


class GraphLayers(nn.Module):
    """A X W for a graph's adjacency matrix A, which comes with the data."""

    def __init__(self, act):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.act = nn.Linear(12, 16), nn.Linear(16, 2), act

    def forward(self, adjacency, x):
        return adjacency @ self.b(self.act(adjacency @ self.a(x)))


@pytest.mark.parametrize(("act", "sick"), [(torch.relu, False), (lambda h: h.softmax(-1), True)])
def test_a_softmax_behind_a_graphs_adjacency_matrix(act, sick):
    a = torch.eye(20) + (torch.rand(20, 20, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    batch = ({"adjacency": a / a.sum(1, keepdim=True), "x": torch.randn(20, 12)}, torch.randint(0, 2, (20,)))
    assert doctor.audit(GraphLayers(act), batch, F.cross_entropy).has("hidden-softmax") is sick


class Slots(nn.Module):
    """softmax(q K^T) V over rows that are learned; with a bias in between it is a hidden layer."""

    def __init__(self, bias):
        super().__init__()
        torch.manual_seed(0)
        self.keys, self.values = nn.Parameter(torch.randn(16, 48)), nn.Parameter(torch.randn(16, 8))
        self.bias, self.head = nn.Parameter(torch.zeros(16)) if bias else None, nn.Linear(8, 2)

    def forward(self, x):
        scores = x[:, 0] @ self.keys.t() / 48**0.5
        return self.head((scores if self.bias is None else scores + self.bias).softmax(-1) @ self.values)


@pytest.mark.parametrize("bias", [False, True])
def test_a_memory_of_slots_is_no_hidden_softmax(bias):
    assert doctor.audit(Slots(bias), (X, Y), F.cross_entropy).has("hidden-softmax") is bias
