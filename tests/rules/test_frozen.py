"""Layers that a script freezes as they were drawn, beside the designs that look alike."""
import textwrap

import pytest

from gradcheck_doctor.integrations.script import run_script
from gradcheck_doctor.rules.engine import diagnose

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
