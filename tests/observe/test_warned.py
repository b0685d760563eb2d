"""Warnings of an observed script name the same lines, and come as often, as without us."""
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import gradcheck_doctor as doctor

SCRIPT = """
import warnings
import torch
import torch.nn.functional as F
from torch import nn
net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
opt = torch.optim.SGD(net.parameters(), lr=0.01)

def mine(x):
    warnings.warn("mine", stacklevel=2)
    return x

for i in range(12):
    x, y = torch.randn(16, 4), torch.randn(16)
    opt.zero_grad()
    out = mine(F.softmax(net(x)))                                   # two calls deep in torch
    loss = F.mse_loss(out, y) + nn.MSELoss()(net(x), y)             # broadcasts
    loss = loss + nn.Softmax()(out).sum() + torch.randn(2, 3, 4).T.sum() * out.mean()          # a module; C++
    loss.backward()
    opt.step()
"""


@pytest.mark.parametrize("filters", ["default", "always"])
def test_the_warnings_of_a_script_are_those_of_the_script_alone(tmp_path, filters):
    (tmp_path / "train.py").write_text(SCRIPT)
    alone, seen = (subprocess.run([sys.executable, "-W", filters, *how, "train.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
                   for how in ((), ("-m", "gradcheck_doctor", "run", "--fail-on", "never")))
    lines = [line for line in seen.stderr.splitlines() if not line.startswith("doctor")]
    assert lines == alone.stderr.splitlines() and len(lines) >= 12


def test_the_functions_of_warnings_are_back_after_each_step():
    before = warnings.warn, warnings._showwarnmsg
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    during = []
    model.register_forward_hook(lambda *_: during.append(warnings.warn))
    with doctor.watch(model, optimizer, every=1):
        for _ in range(3):
            model(torch.randn(5, 3)).sum().backward()
            optimizer.step()
    assert (warnings.warn, warnings._showwarnmsg) == before and any(w is not before[0] for w in during)
