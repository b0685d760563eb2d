"""An optimizer that holds the weights and never steps."""
import textwrap

import pytest

from gradcheck_doctor.integrations.script import run_script
from gradcheck_doctor.records.findings import NO_STEP
from gradcheck_doctor.rules.engine import diagnose
from gradcheck_doctor.session import examine

SCRIPT = """
import torch
from torch import nn
torch.manual_seed(0)
x = torch.randn(512, 10)
y = (x[:, 0] * x[:, 1] > 0).long()
net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 2)){mode}
opt = {optimizer}
for step in range({steps}):
    loss = nn.functional.cross_entropy(net(x), y)
    net.zero_grad()
    loss.backward()
    {step}
"""
SGD = "torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)"


def recorded(tmp_path, mode="", optimizer=SGD, steps=60, step="opt.step"):
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(SCRIPT.format(mode=mode, optimizer=optimizer, steps=steps, step=step)))
    return run_script(str(path), None, []).recording


@pytest.mark.parametrize(("step", "line", "treatment"), [("opt.step", 13, "named"), ("pass", 8, "not named")])
def test_it_is_found_at_the_statement_that_only_names_the_step_or_where_it_is_built(tmp_path, step, line, treatment):
    recording = recorded(tmp_path, step=step)
    found = [f for f in diagnose(recording) if f.severity != "info"]
    assert [f.rule for f in found] == ["unoptimized-parameter"] and found[0].location.line == line
    assert "never takes a step, in 60 backward passes" in found[0].message and ("without its brackets" in found[0].message) == (treatment == "named")
    assert [f.prescription.treatment for f in found[0].fixes] == ["call-step"]


@pytest.mark.parametrize("settings", [
    {"step": "opt.step()"},                                        # it steps
    {"steps": 20},                                                 # it may be accumulating
    {"mode": ".eval()"},                                           # gradients of a finished model, for their own sake
    {"optimizer": "None", "step": "pass"},                         # there is none
    {"optimizer": "torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)"},       # of another model, which nobody trains
])
def test_what_only_looks_like_it(tmp_path, settings):
    assert not [f for f in diagnose(recorded(tmp_path, **settings)) if f.severity != "info"]


def test_a_run_without_any_step_is_not_called_healthy(tmp_path):
    report = examine(recorded(tmp_path, optimizer="None", step="pass"), "train.py").report
    assert report.nothing_seen and report.headline == "no training observed" and NO_STEP in [b.reason for b in report.blind_spots]


TWO = """
import torch
from torch import nn
torch.manual_seed(0)
x = torch.randn(256, 8)
encoder, head = nn.Sequential(nn.Linear(8, 32), nn.ReLU()), nn.Linear(32, 2)
first = torch.optim.SGD(encoder.parameters(), lr=0.1)
second = torch.optim.SGD(head.parameters(), lr=0.1)
for step in range(40):
    loss = nn.functional.cross_entropy(head(encoder(x)), (x[:, 0] > 0).long())
    first.zero_grad(); second.zero_grad()
    loss.backward()
    second.step()
"""


def test_one_of_two_optimizers_never_steps(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(TWO)
    finding, = [f for f in diagnose(run_script(str(path), None, []).recording) if f.rule == "unoptimized-parameter"]
    assert finding.location.line == 7 and "SGD holds 2 parameters" in finding.message
