"""Networks too narrow for their depth, against those whose initialisation is the fault; no cure that is there already."""
import pytest
import torch
import torch.nn.functional as F
from loops import fitted
from torch import nn

from gradcheck_doctor.observe.provenance import recording_construction


def trained(width, depth, he=True, seed=0, rate=1e-3):
    with recording_construction():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), *[m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU())], nn.Linear(width, 1))
        for layer in model if he else ():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        return fitted(model, ((x := torch.randn(64, 8), (x[:, :1] > 0).float()) for _ in range(100)), F.binary_cross_entropy_with_logits, rate)


def test_a_narrow_net_that_is_born_dead_is_too_narrow():
    report = trained(3, 20)
    first, *others = [f for f in report.findings if f.severity != "info"]
    assert first.rule == "too-narrow" and first.severity == "warning"
    assert "dead-relu" in [f.rule for f in others] and {f.fingerprint for f in others} <= set(first.related)
    assert not [fix for f in report.findings for fix in f.fixes if fix.prescription.treatment == "initialise"]


@pytest.mark.parametrize(("width", "depth", "he"), [(3, 20, False), (64, 20, False)])
def test_the_initialisation_comes_before_the_width(width, depth, he):
    first = trained(width, depth, he).findings[0]
    assert first.rule == "init-activation-mismatch" and first.fixes[0].prescription.treatment == "initialise"


def test_a_narrow_net_that_learns_is_let_be():
    found = [f for f in trained(6, 7, rate=0.01, seed=2).findings if f.rule == "too-narrow"]
    assert [f.severity for f in found] == ["info"]


def test_the_scheme_of_a_few_weights_is_that_of_the_call():
    schemes = {p.name: p.scheme for p in trained(3, 2).recording.parameters if p.name.endswith("weight")}
    assert schemes["2.weight"] == schemes["4.weight"] == "he normal"
    assert {p.scheme for p in trained(3, 2, he=False).recording.parameters if p.shape == (3, 3)} == {"too small to tell"}
