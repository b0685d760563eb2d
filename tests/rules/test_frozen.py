"""Layers that a script freezes as they were drawn, beside the designs that look alike."""
import copy
import textwrap

import pytest
import torch
from torch import nn

from gradcheck_doctor.integrations.script import run_script
from gradcheck_doctor.observe.provenance import recording_construction
from gradcheck_doctor.observe.watch import Monitor
from gradcheck_doctor.rules.engine import diagnose
from gradcheck_doctor.rules.normalisation.frozen_batchnorm_drift import FrozenBatchNormDrift
from gradcheck_doctor.rules.transfer.weights_not_loaded import WeightsNotLoaded

SCRIPT = """\
    import torch
    from torch import nn
    torch.manual_seed(0)
    x = torch.randn(512, 24)
    y = (x @ torch.randn(24, 4)).argmax(1)
    body, head = nn.Sequential(nn.Linear(24, {width}), nn.Tanh()), nn.Linear({width}, 4)
    for p in body.parameters():
        p.requires_grad = {flag}
    {between}
    net = nn.Sequential(body, head)
    opt = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr={lr})
    for step in range(200):
        i = torch.arange(64) + 64 * (step % 8)
        loss = nn.functional.cross_entropy(net(x[i]), y[i]){also}
        opt.zero_grad()
        loss.backward()
        opt.step()
"""


def found(tmp_path, width=2, between="", also="", lr=1e-2, flag="False"):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(width=width, between=between, also=also, lr=lr, flag=flag))
    recording = run_script(str(script), None, [], every="auto").recording
    return next((f for f in diagnose(recording) if f.rule == "frozen-trainable"), None)


@pytest.mark.parametrize("flag", ["False", "id(p) in set()"])
def test_a_fresh_body_that_is_frozen_where_nothing_is_learned(tmp_path, flag):
    finding = found(tmp_path, flag=flag)
    assert (finding.severity, finding.location.line) == ("warning", 8)
    assert finding.evidence["share"] == pytest.approx(24 * 2 / (24 * 2 + 2 * 4))


@pytest.mark.parametrize("options", [
    {"width": 256},                                                                           # random features that do
    {"between": "body.load_state_dict(body.state_dict())"},
    {"between": "body.requires_grad_(True)"},
    {"between": "body, teacher = nn.Sequential(nn.Linear(24, 2)), body", "also": " + (body(x[i]) - teacher(x[i])).pow(2).mean()"}])
def test_designs_are_left_alone(tmp_path, options):
    assert found(tmp_path, **options) is None


# -- batch normalisation that is frozen, or follows another ------------------------------------------------------------------------------------
def drift(follow):
    """GD505 of a run in which a network without gradients runs in training mode; with `follow` its weights are a moving average."""
    torch.manual_seed(0)
    online = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    both = nn.ModuleDict({"online": online, "target": copy.deepcopy(online).requires_grad_(False)})
    optimizer = torch.optim.SGD(online.parameters(), 1e-2)
    with Monitor([both], [optimizer], every=1) as monitor:
        for _ in range(20):
            x = torch.randn(32, 6) + 2.0
            loss = (both["online"](x) - both["target"](x)).square().mean() + both["online"](x).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if follow:
                with torch.no_grad():
                    for p, q in zip(both["target"].parameters(), online.parameters()):
                        p.lerp_(q, 0.05)
    return [f.severity for f in FrozenBatchNormDrift().check(monitor.recording())]


def test_a_target_network_that_follows_is_not_frozen():
    assert drift(follow=False) == ["warning"] and drift(follow=True) == []


# -- checkpoints that fit in part --------------------------------------------------------------------------------------------------------------
def partly_loaded(change):
    """(severity of GD904) after a body's state, as `change` makes it, was loaded with strict=False."""
    body = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
    state = {f"0.{k}": v for k, v in body.state_dict().items()}
    with recording_construction() as log:
        model = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8)), *(nn.Linear(8, 8) for _ in range(3)))
        model.load_state_dict(change(state), strict=False)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        with Monitor([model], [optimizer], every=1, log=log) as monitor:
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
    return [f.severity for f in WeightsNotLoaded().check(monitor.recording())]


@pytest.mark.parametrize(("change", "severity"), [
    (lambda state: state, "info"),                                                            # new parts are more than the checkpoint has
    (lambda state: {f"module.{k}": v for k, v in state.items()}, "error"),
    (lambda state: {k: v for k, v in state.items() if k.startswith("module.")}, "error"),     # filtered until nothing was left
    (lambda state: {k: v for k, v in state.items() if k == "0.0.bias"}, "warning")])
def test_new_parts_are_missing_from_a_checkpoint_and_that_is_all(change, severity):
    assert partly_loaded(change) == [severity]


HEAD_ONLY = """\
    import torch
    from torch import nn
    torch.manual_seed(0)
    x = torch.randn(512, 24)
    y = (x @ torch.randn(24, 4)).argmax(1)
    def net():
        return nn.Sequential(nn.Sequential(nn.Linear(24, 64), nn.Tanh()), nn.Linear(64, 4))
    def fit(net, trained, steps=150):
        opt = torch.optim.Adam(trained.parameters(), lr=1e-2)
        for step in range(steps):
            i = torch.arange(64) + 64 * (step % 8)
            loss = nn.functional.cross_entropy(net(x[i]), y[i])
            opt.zero_grad()
            loss.backward()
            opt.step()
    first, second = net(), net()
    {between}
    fit(second, second[1])
"""


@pytest.mark.parametrize(("between", "severity"), [
    ("fit(first, first); second[0].load_state_dict(first[0].state_dict())", "info"), ("", "error")])
def test_a_loaded_body_below_a_head_that_learns_needs_no_optimizer(tmp_path, between, severity):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(HEAD_ONLY).format(between=between))
    recording = run_script(str(script), None, [], every="auto").recording
    assert [f.severity for f in diagnose(recording) if f.code == "GD704"] == [severity]
