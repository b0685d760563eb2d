"""Schedules that leave a run without a rate: watching the wrong way, stepped too rarely, taken early; and those in use that look like them."""
import pytest

from gradcheck_doctor.integrations.script import run_script
from gradcheck_doctor.rules.engine import diagnose

SCRIPT = """
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import *
torch.manual_seed(0)
x, noise = torch.randn(1024, 8), {noise}
y = torch.where(torch.rand(1024) < noise, torch.randint(0, 3, (1024,)), (x[:, 0] * x[:, 1]).sign().long() + 1)
model = nn.Sequential(nn.Linear(8, 48), nn.LeakyReLU(0.1), nn.Linear(48, 48), nn.LeakyReLU(0.1), nn.Linear(48, 3))
opt = torch.optim.SGD(model.parameters(), lr={lr}, momentum=0.9)
sched = {schedule}
for epoch in range({epochs}):
    for i in torch.randperm(1024).split(64):
        opt.zero_grad()
        F.cross_entropy(model(x[i]), y[i]).backward()
        opt.step()
        {batch}
    with torch.no_grad():
        loss = F.cross_entropy(model(x), y).item()
        right = (model(x).argmax(1) == y).float().mean().item()
    {epoch}
"""


def low(tmp_path, schedule, *, epoch="pass", batch="pass", epochs=16, noise=0.0, lr=0.02, **options):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT.format(schedule=schedule, epoch=epoch, batch=batch, epochs=epochs, noise=noise, lr=lr))
    return [f for f in diagnose(run_script(str(path), None, [], **options).recording) if f.rule == "learning-rate-too-low"]


def lines(tmp_path, finding):
    return (tmp_path / "train.py").read_text().splitlines()[finding.location.line - 1].strip()


@pytest.mark.parametrize(("mode", "watched", "right"), [("max", "loss", "min"), ("min", "right", "max")])
def test_a_plateau_scheduler_that_watches_the_wrong_way_is_named_where_it_is_built(tmp_path, mode, watched, right):
    (finding,) = low(tmp_path, f'ReduceLROnPlateau(opt, mode="{mode}", patience=0)', epoch=f"sched.step({watched})")
    assert finding.severity == "warning" and f"mode '{mode}'" in finding.message and lines(tmp_path, finding).startswith("sched = ReduceLROnPlateau")
    assert [(fix.prescription.treatment, fix.prescription.arguments) for fix in finding.fixes] == [("plateau-mode", {"mode": right})]


@pytest.mark.parametrize("options", [
    {"schedule": "ReduceLROnPlateau(opt, patience=0)", "epoch": "sched.step(loss)"},
    {"schedule": 'ReduceLROnPlateau(opt, mode="max", patience=1)', "epoch": "sched.step(right)"},
    {"schedule": "ReduceLROnPlateau(opt, patience=0, threshold=0.01)", "epoch": "sched.step(loss)", "noise": 0.9, "epochs": 30},       # a floor above half
    {"schedule": "ReduceLROnPlateau(opt, patience=0)", "epoch": "sched.step(1.0 + 0.01 * epoch)"},           # overfits: what it watches rises
    {"schedule": "CosineAnnealingLR(opt, 16)", "epoch": "sched.step()"},
    {"schedule": "CosineAnnealingWarmRestarts(opt, 4)", "epoch": "sched.step()"},
    {"schedule": "ExponentialLR(opt, 0.6)", "epoch": "sched.step()", "noise": 0.9, "epochs": 30},
    {"schedule": "MultiStepLR(opt, [6, 8], 0.1)", "epoch": "sched.step()", "noise": 0.9, "epochs": 30},
    {"schedule": "OneCycleLR(opt, 0.1, total_steps=257)", "batch": "sched.step()"},
    {"schedule": "OneCycleLR(opt, 0.1, total_steps=17)", "epoch": "sched.step()"}])
def test_schedules_in_use_are_quiet(tmp_path, options):
    assert [f for f in low(tmp_path, **options) if f.severity != "info"] == []


def test_a_rate_that_is_gone_after_a_few_epochs_of_a_falling_loss_is_found(tmp_path):
    (finding,) = low(tmp_path, "ExponentialLR(opt, 0.1)", epoch="sched.step()", epochs=30, lr=0.005)
    assert finding.severity == "warning" and "took the learning rate from 0.005 to" in finding.message and lines(tmp_path, finding) == "sched.step()"
    assert not finding.fixes                                                  # it is stepped once an epoch as it is


def test_a_one_cycle_sized_in_steps_and_stepped_once_an_epoch_is_found_even_where_the_loss_falls(tmp_path):
    cycle = "OneCycleLR(opt, 0.1, total_steps=16 * 16)"
    (finding,) = low(tmp_path, cycle, epoch="sched.step()")
    assert finding.severity == "warning" and "stepped 16 times in 256 steps of the optimizer, once an epoch, of the 256 it was built for" in finding.message
    assert [fix.prescription.treatment for fix in finding.fixes] == ["step-schedule-per-batch"] and lines(tmp_path, finding) == "sched.step()"
    assert [f for f in low(tmp_path, cycle, epoch="sched.step()", max_steps=60) if f.severity != "info"] == []


def test_a_schedule_for_many_more_steps_than_the_run_has(tmp_path):
    (finding,) = low(tmp_path, "OneCycleLR(opt, 0.01, total_steps=20000)", batch="sched.step()")
    assert finding.severity == "warning" and "built for 20000 steps, the run has 256" in finding.message
    assert [f.severity for f in low(tmp_path, "OneCycleLR(opt, 0.01, total_steps=20000)", batch="sched.step()", max_steps=60)] in ([], ["info"])


@pytest.mark.parametrize(("schedule", "peak"), [
    ("OneCycleLR(opt, max_lr=8.0, total_steps=257)", "8"), ("CyclicLR(opt, base_lr=0.05, max_lr=20.0, step_size_up=60)", "20"),
    ("LambdaLR(opt, lambda step: min(step, 100))", "5")])
def test_a_schedule_that_takes_the_rate_too_high_is_named_with_its_peak(tmp_path, schedule, peak):
    low(tmp_path, schedule, batch="sched.step()", lr=0.05)
    (finding,) = [f for f in diagnose(run_script(str(tmp_path / "train.py"), None, []).recording) if f.rule == "learning-rate-too-high"]
    assert finding.severity != "info" and f"SGD with lr {peak}, the peak of its schedule, changes" in finding.message
    assert lines(tmp_path, finding).startswith("sched = ") and all("Lower the peak of the learning rate" in f.prescription.title for f in finding.fixes)


# -- an epsilon that holds the steps back --------------------------------------------------------------------------------------------------
SLOWED = """
import torch
from torch import nn
torch.manual_seed(0)
x = torch.rand(1500, 4) * 2 - 1
y = torch.sigmoid(6 * x[:, 0]) * (1 + x[:, 1]) + torch.sin(3 * x[:, 2]) * x[:, 3]
CFG = {{"lr": {lr}, "eps": {eps}}}
make = {{"adam": lambda p, c: torch.optim.Adam(p, lr=c["lr"], eps=c["eps"])}}
net = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
opt = make["adam"](net.parameters(), CFG)
for epoch in range(20):
    for i in torch.randperm(1500).split(50):
        opt.zero_grad()
        nn.functional.mse_loss(net(x[i])[:, 0], y[i]).backward()
        opt.step()
"""


@pytest.mark.parametrize(("lr", "eps", "severity"), [(1e-3, 0.1, "warning"), (1e-3, 1e-3, None), (1e-3, 1e-2, None), (0.1, 0.1, "info")])
def test_an_epsilon_that_makes_a_run_slow_is_a_warning_although_it_learns(tmp_path, lr, eps, severity):
    """With a rate made for it (the last case) the steps are as large as others'."""
    path = tmp_path / "train.py"
    path.write_text(SLOWED.format(lr=lr, eps=eps))
    found = [f for f in diagnose(run_script(str(path), None, []).recording) if f.rule == "adam-epsilon"]
    assert [f.severity for f in found] == [severity] * len(found) and (severity in (None, "info") or found)
