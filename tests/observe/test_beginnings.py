"""What weights were before the first step: bare tensors, matrices with units in columns, state dicts that a script makes."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradcheck_doctor as doctor
from gradcheck_doctor.integrations.script import run_script
from gradcheck_doctor.observe.watch import Monitor
from gradcheck_doctor.rules.engine import diagnose

X = torch.randn(256, 5, generator=torch.Generator().manual_seed(0))
Y = (X.square().sum(1) > 4).long()
SIZES = [5, 200, 20, 200, 2]


def he(i, o):
    return torch.randn(i, o) * (2 / i) ** 0.5


def train(weights, lr=0.05, steps=200):
    """A net of bare tensors, x @ W, for long enough that the weights are no longer what they were."""
    opt = torch.optim.Adam(weights, lr)
    with Monitor() as monitor:
        for _ in range(steps):
            h = X
            for w in weights[:-1]:
                h = torch.relu(h @ w)
            opt.zero_grad()
            F.cross_entropy(h @ weights[-1], Y).backward()
            opt.step()
    assert monitor.observer.failure is None
    return monitor.recording()


def test_bare_tensors_are_recorded_as_they_are_before_the_first_step():
    torch.manual_seed(0)
    weights = [he(i, o).requires_grad_() for i, o in zip(SIZES, SIZES[1:], strict=False)]
    before = [w.std(unbiased=False).item() for w in weights]
    recording = train(weights)
    assert any(abs(w.std().item() / std - 1) > 0.2 for w, std in zip(weights, before, strict=True))
    records = recording.parameters
    assert [r.std for r in records] == pytest.approx(before, rel=0.05) and not any(r.trained for r in records)
    assert [r.fan_in for r in records] == SIZES[:-1] and [r.fan_out for r in records] == SIZES[1:]
    assert [round(r.gain, 1) for r in records] == pytest.approx([1.4] * 4, abs=0.15)
    assert not [f for f in diagnose(recording) if f.code in ("GD102", "GD103", "GD901")]


class Own(nn.Module):
    """A layer of one's own; `columns`: x @ W, else x @ W.T."""

    def __init__(self, i, o, columns):
        super().__init__()
        self.columns, self.weight = columns, nn.Parameter(torch.randn(*((i, o) if columns else (o, i))) * (2 / i) ** 0.5)

    def forward(self, x):
        return x @ self.weight if self.columns else x @ self.weight.T


@pytest.mark.parametrize("columns", [True, False])
def test_fans_of_a_layer_of_ones_own_follow_its_product(columns):
    torch.manual_seed(0)
    model = nn.Sequential(*[m for i, o in zip(SIZES, SIZES[1:], strict=False) for m in (Own(i, o, columns), nn.ReLU())][:-1])
    recording = doctor.audit(model, (X, Y), F.cross_entropy).recording
    assert [(r.fan_in, r.fan_out) for r in recording.parameters] == list(zip(SIZES, SIZES[1:], strict=False))


MADE = """
import io, torch
from torch import nn
torch.manual_seed(0)
x = torch.randn(256, 8); y = (x[:, 0] > 0).long()
net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
{}
opt = torch.optim.SGD(net.parameters(), 0.1)
for i in range(30):
    loss = nn.functional.cross_entropy(net(x), y)
    opt.zero_grad(); loss.backward(); opt.step()
"""
EQUAL = "net.load_state_dict({k: torch.full_like(v, 0.1) for k, v in net.state_dict().items()})"
READ = "file = io.BytesIO(); torch.save(net.state_dict(), file); file.seek(0); net.load_state_dict(torch.load(file))"


@pytest.mark.parametrize(("way", "scheme", "trained"), [(EQUAL, "constant 0.1", False), (READ, "trained or loaded", True),
                                                        ("net.load_state_dict(net.state_dict())", "torch default (kaiming_uniform a=sqrt(5))", False)])
def test_a_state_dict_that_the_script_made_is_an_initialisation(tmp_path, way, scheme, trained):
    path = tmp_path / "train.py"
    path.write_text(MADE.format(way))
    original = torch.load
    records = {r.name: r for r in run_script(str(path), None, []).recording.parameters}
    assert torch.load is original
    assert (records["2.weight"].scheme, records["2.weight"].trained) == (scheme, trained)


def test_what_was_trained_before_is_loaded_as_trained(tmp_path):
    path = tmp_path / "train.py"
    again = MADE.split("opt =", 1)[1].replace("net", "other").replace("opt.", "second.")
    path.write_text(MADE.format("") + "other = nn.Sequential(*[type(m)(m.in_features, m.out_features) if hasattr(m, 'in_features') else m for m in net])\n"
                    "other.load_state_dict(net.state_dict())\nsecond =" + again)
    result = run_script(str(path), None, [])
    records = result.recording.parameters
    assert not result.crash and len(records) == 12 and [r.trained for r in records] == [False] * 6 + [True] * 6


def test_a_copy_of_the_first_weights_brought_back_changes_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2))
    start = copy.deepcopy(net.state_dict())
    net.load_state_dict(start)
    assert not any(r.trained for r in doctor.audit(net, (X, Y), F.cross_entropy).recording.parameters)
