"""Learning rates that are too high, too low, or taken away by a schedule, and the healthy runs that look like them."""
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler as schedulers

import gradcheck_doctor as doctor
from gradcheck_doctor.integrations.script import run_script
from gradcheck_doctor.records.findings import Finding
from gradcheck_doctor.records.recording import LossRecord, OptimizerGroup, OptimizerRecord, ParameterRecord, ParameterStep, Recording, StepRecord
from gradcheck_doctor.rules.base import Measurement
from gradcheck_doctor.rules.engine import _demoted, _grouped, diagnose
from gradcheck_doctor.rules.optimizer.learning_rate import CERTAIN, LearningRateTooHigh, LearningRateTooLow
from gradcheck_doctor.rules.optimizer.readings import rates
from gradcheck_doctor.rules.optimizer.schedules import STARVED
from gradcheck_doctor.rules.progress import learned, phase, progress
from gradcheck_doctor.rules.transfer.weights_not_loaded import WeightsNotLoaded


def serious(report):
    return [f.rule for f in report.findings if f.severity != "info"]


def recorded(losses, *, op="scalar", optimizers=(0,), **loss):
    """A run with these losses; `optimizers` are the first steps of its phases."""
    def number(step):
        return max(n for n, first in enumerate(optimizers) if first <= step)

    return Recording("run", curve=tuple(enumerate(losses)), total_steps=len(losses), losses=(LossRecord(-1, op, losses[0], **loss),),
                     steps=tuple(StepRecord(s, v, optimizer=number(s)) for s, v in enumerate(losses)),
                     optimizers=tuple(OptimizerRecord("SGD", ()) for _ in optimizers))


# -- progress ------------------------------------------------------------------------------------------------------------------------------
def test_an_early_fall_is_progress_but_teaches_nothing_alone():
    """A bias finds the frequency of a class in the first steps; what comes after tells whether the rest learned."""
    recording = recorded([0.67, 0.6, 0.55] + [0.4] * 200, op="binary_cross_entropy_with_logits")
    assert progress(recording) == pytest.approx(1 / 3, abs=0.01) and progress(recording, early=True) == pytest.approx(0.0)
    assert not learned(recording)


def test_a_start_that_was_the_fault_is_no_progress():
    blown = [2.3, 1700.0, 400.0, 60.0] + [2.3] * 200
    assert progress(recorded(blown, op="cross_entropy", classes=10)) == pytest.approx(0.0, abs=0.01)
    assert progress(recorded([1e4, 1e4, 9e3, 5.0] + [1.0] * 200)) == pytest.approx(0.0)


def test_a_last_phase_of_few_steps_leaves_the_one_before_to_be_judged():
    recording = recorded([1.0 / (1 + k) for k in range(100)] + [0.005] * 5, optimizers=(0, 100))
    assert phase(recording) == (0, 100) and learned(recording)
    assert phase(recorded([1.0] * 100 + [0.5] * 50, optimizers=(0, 100))) == (100, 150)


# -- too high ------------------------------------------------------------------------------------------------------------------------------
def quantiles(optimizer, epochs=6):
    """Pinball loss on noisy data: it falls in the first dozen steps and then sits on the noise."""
    torch.manual_seed(0)
    x = torch.randn(2000, 8)
    y = 2 * x[:, :1] + torch.sin(3 * x[:, 1:2]) + torch.randn(2000, 1)
    model, q = nn.Sequential(nn.Linear(8, 64), nn.Mish(), nn.Linear(64, 64), nn.Mish(), nn.Linear(64, 5)), torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    opt = optimizer(model.parameters())
    with doctor.watch(model, opt) as seen:
        for _ in range(epochs):
            for i in torch.randperm(2000).split(32):
                error = y[i] / 2.3 - model(x[i])
                opt.zero_grad()
                torch.maximum(q * error, (q - 1) * error).mean().backward()
                opt.step()
    return seen.report()


@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.Adagrad(p, 0.02), lambda p: torch.optim.RMSprop(p, 1e-3)])
def test_large_first_steps_of_adagrad_and_rmsprop_are_their_nature(optimizer):
    report = quantiles(optimizer)
    assert serious(report) == []


def test_a_polish_with_lbfgs_is_no_large_rate():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1)), torch.randn(64, 2)
    y = torch.sin(x.sum(1, keepdim=True))
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    polish = torch.optim.LBFGS(model.parameters(), lr=1, max_iter=10, line_search_fn="strong_wolfe")

    def closure():
        polish.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    with doctor.watch(model, [adam, polish]) as seen:
        for _ in range(150):
            adam.zero_grad()
            F.mse_loss(model(x), y).backward()
            adam.step()
        for _ in range(5):
            polish.step(closure)
    report = seen.report()
    assert serious(report) == [] and not any("LBFGS" in f.message for f in report.findings)


def classify(optimizer, steps=300, schedule=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ELU(), nn.Linear(32, 32), nn.ELU(), nn.Linear(32, 3))
    opt = optimizer(model.parameters())
    rate = schedule(opt) if schedule else None
    x = torch.randn(1024, 8)
    y = x[:, :3].argmax(1)
    with doctor.watch(model, opt) as seen:
        for step in range(steps):
            i = torch.arange(32) + 32 * (step % 32)
            opt.zero_grad()
            F.cross_entropy(model(x[i]), y[i]).backward()
            opt.step()
            if rate:
                rate.step()
    return seen.report()


def test_a_rate_that_is_too_high_is_still_found_and_what_fell_is_not_denied():
    report = classify(lambda p: torch.optim.Adam(p, 1.0))
    finding = next(f for f in report.findings if f.rule == "learning-rate-too-high")
    assert finding.severity == "error"
    assert [fix.prescription.arguments["lr"] for fix in finding.fixes] == sorted((fix.prescription.arguments["lr"] for fix in finding.fixes), reverse=True)
    gone = finding.evidence["loss_fell"]
    assert ("the loss does not fall" in finding.message) == (gone is None or gone < 0.05)


def test_momentum_near_1_is_named_instead_of_the_rate():
    report = classify(lambda p: torch.optim.SGD(p, 0.05, momentum=0.999))
    first = report.findings[0]
    assert first.rule == "learning-rate-too-high" and first.severity == "error" and "momentum 0.999 a gradient acts for 1000 steps" in first.message
    assert first.fixes[0].prescription.treatment == "momentum" and first.fixes[0].prescription.arguments == {"momentum": 0.9, "old": 0.999}
    assert serious(classify(lambda p: torch.optim.SGD(p, 0.05, momentum=0.9))) == []


# -- taken away by a schedule --------------------------------------------------------------------------------------------------------------
HEALTHY = {
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, 400), "one cycle": lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=401),
    "step decay": lambda o: schedulers.MultiStepLR(o, [120, 240, 360], 0.1), "exponential per epoch": lambda o: schedulers.StepLR(o, 20, 0.75),
    "linear": lambda o: schedulers.LinearLR(o, 1.0, 0.0, 400), "constant": lambda o: schedulers.ConstantLR(o, 1.0, 1),
    "inverse root": lambda o: schedulers.LambdaLR(o, lambda s: min((s + 1) / 40, (40 / (s + 1)) ** 0.5)),
    "warm-up and linear": lambda o: schedulers.LambdaLR(o, lambda s: min((s + 1) / 40, (401 - s) / 360)),
    "polynomial": lambda o: schedulers.PolynomialLR(o, 400, 2.0), "restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 50)}
STARVING = {"exponential per batch": lambda o: schedulers.ExponentialLR(o, 0.7), "step decay per batch": lambda o: schedulers.StepLR(o, 3, 0.5),
            "warm-up": lambda o: schedulers.LambdaLR(o, lambda s: s / 50_000)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*HEALTHY, *STARVING])
def test_the_mean_rate_tells_a_schedule_that_starves_from_those_in_use(name):
    opt = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
    schedule, steps = (HEALTHY | STARVING)[name](opt), []
    for step in range(400):
        steps.append(StepRecord(step, 1.0, lr=opt.param_groups[0]["lr"]))
        schedule.step()
    group = OptimizerGroup(lr=steps[-1].lr, parameters=(), initial_lr=opt.param_groups[0]["initial_lr"])
    share = rates(Recording("run", steps=tuple(steps), optimizers=(OptimizerRecord("SGD", (group,)),)), 0).share
    assert (share < STARVED) == (name in STARVING)
    assert name in STARVING or share > 2 * STARVED


SCRIPT = """
import torch
import torch.nn.functional as F
from torch import nn
torch.manual_seed(0)
x = torch.randn(1024, 8)
y = x[:, :3].argmax(1)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
opt = torch.optim.Adam(model.parameters(), lr=2e-3)
sched = {schedule}
for epoch in range(3):
    for i in torch.randperm(1024).split(32):
        opt.zero_grad()
        F.cross_entropy(model(x[i]), y[i]).backward()
        opt.step()
        sched.step()
"""


def found(tmp_path, schedule, **options):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT.format(schedule=schedule))
    recording = run_script(str(path), None, [], **options).recording
    return recording, [f for f in diagnose(recording) if f.rule == "learning-rate-too-low"]


def test_a_schedule_stepped_every_batch_is_named_at_its_step(tmp_path):
    recording, (finding,) = found(tmp_path, "torch.optim.lr_scheduler.ExponentialLR(opt, 0.6)")
    assert finding.severity == "warning" and finding.location.line == 16 and "took the learning rate from 0.002 to" in finding.message
    assert "(below 1 % after 10 of 96 steps)" in finding.message
    assert [fix.prescription.treatment for fix in finding.fixes] == ["step-schedule-per-epoch"]
    assert recording.optimizers[0].groups[0].initial_lr == 2e-3


def test_a_factor_that_is_a_rate_is_named_where_the_schedule_is_built(tmp_path):
    recording, (finding,) = found(tmp_path, "torch.optim.lr_scheduler.LambdaLR(opt, lambda n: 2e-3 * 0.999 ** n)")
    assert finding.severity == "warning" and finding.location.line == 10
    assert "multiplies the learning rate 0.002 by another rate: it begins at 4.0e-06" in finding.message
    assert [(fix.prescription.treatment, fix.prescription.arguments) for fix in finding.fixes] == [("relative-schedule", {"lr": 2e-3})]


def test_a_schedule_that_is_too_small_from_its_start_is_not_told_to_be_stepped_otherwise(tmp_path):
    _, (finding,) = found(tmp_path, "torch.optim.lr_scheduler.LambdaLR(opt, lambda n: 1e-4)")
    assert finding.severity == "warning" and not finding.fixes


def test_a_warm_up_longer_than_the_run_is_named_and_no_rate_is_touched(tmp_path):
    """The schedule has set the rate before the first step; what stands in the source is the initial one."""
    warm = "torch.optim.lr_scheduler.LambdaLR(opt, lambda step: step / 100000)"
    recording, (finding,) = found(tmp_path, warm)
    assert finding.severity == "warning" and "warm-up is longer than the run: in 96 steps" in finding.message and "of 0.002" in finding.message
    assert [(fix.prescription.treatment, fix.prescription.arguments) for fix in finding.fixes] == [("shorten-warmup", {"steps": 9, "longer": 96})]
    assert recording.optimizers[0].groups[0].initial_lr == 2e-3
    _, partial = found(tmp_path, warm, max_steps=60)
    assert [f.severity for f in partial] == ["info"]                      # only the beginning was run


def test_a_schedule_that_left_no_rate_is_no_weak_evidence():
    """A rate that is merely low is information beside another cause; a schedule that ended the training is the cause."""
    other = Finding("GD104", "bias-init", "error", "m")
    low, starved = Finding("GD702", "learning-rate-too-low", "warning", "m"), Finding("GD702", "learning-rate-too-low", "warning", "m", order=CERTAIN)
    assert [f.severity for f in _demoted([other, low], frozenset({"GD702"}))] == ["error", "info"]
    assert [f.severity for f in _demoted([other, starved], frozenset({"GD702"}))] == ["error", "warning"]


def test_a_schedule_in_use_is_quiet(tmp_path):
    _, low = found(tmp_path, "torch.optim.lr_scheduler.CosineAnnealingLR(opt, 96)")
    assert [f for f in low if f.severity != "info"] == []


def test_a_rate_is_raised_by_a_hundred_at_most():
    report = classify(lambda p: torch.optim.SGD(p, 1e-7))
    finding = next(f for f in report.findings if f.rule == "learning-rate-too-low")
    asked = [fix.prescription.arguments["lr"] for fix in finding.fixes]
    assert math.isclose(asked[0], 1e-5) and asked[1:] == [1e-2]           # and what people begin with


def test_units_that_a_rate_saturated_are_not_blamed_on_how_the_weights_were_drawn():
    """A pooler and head of std 0.02: the tanh is flat after a few steps at a rate of 0.3, not before."""
    torch.manual_seed(0)
    x = torch.randn(512, 48)
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 2))
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight, std=0.02)
    opt = torch.optim.AdamW(model.parameters(), lr=1.0)
    with doctor.watch(model, opt) as seen:
        for step in range(150):
            i = torch.arange(32) + 32 * (step % 16)
            opt.zero_grad()
            F.cross_entropy(model(x[i]), y[torch.randperm(512)[:32]]).backward()
            opt.step()
    report = seen.report()
    assert serious(report)[0] == "learning-rate-too-high" and "init-scale" not in serious(report)


@pytest.mark.parametrize(("optimizer", "lr", "asked"), [("SGD", 1e-5, [1e-3, 1e-2]), ("SGD", 0.02, [1.0]), ("SGD", 0.2, []), ("Adam", 5e-4, [1e-2, 1e-3]),
                                                        ("Adam", 1e-2, []),
                                                        ("Adadelta", 1.0, [10.0])])
def test_nobody_is_sent_to_a_rate_that_no_one_uses(optimizer, lr, asked):
    """Steps of a hundred-thousandth at a rate of 0.2: the gradients are small, not the rate."""
    m = Measurement(value=2e-5 if lr < 1e-3 or lr == 0.02 else 1e-4, evidence={"lr": lr, "optimizer": optimizer, "loss_fell": 0.0, "update_ratio": 2e-5})
    assert [p.arguments["lr"] for p in LearningRateTooLow().prescribe(m, Recording("run"))] == pytest.approx(asked)


def test_a_usual_rate_whose_loss_falls_is_not_called_low():
    def quiet(lr):
        group = OptimizerGroup(lr=lr, parameters=("w",), initial_lr=lr)
        losses = [1.0 - 0.004 * k for k in range(60)]
        recording = recorded(losses)
        steps = {"w": tuple(ParameterStep(s, 1.0, update_ratio=1e-5) for s in range(60))}
        return not [f for f in diagnose(Recording(
            "run", parameters=(ParameterRecord("w", "", "weight", (4, 4), 16, True, rms=1.0),), parameter_steps=steps, curve=recording.curve, steps=recording.steps,
            total_steps=60, optimizers=(OptimizerRecord("SGD", (group,), steps=60),))) if f.rule == "learning-rate-too-low"]

    assert quiet(0.05) and not quiet(1e-4)


@pytest.mark.parametrize(("divide", "passes"), [(False, "batches"), (True, "batches"), (False, "losses")])
def test_gradients_of_many_batches_are_summed(divide, passes):
    """Sixteen batches a step, whose mean losses go into backward as they are; divided, or several losses of one forward, they are no reason."""
    torch.manual_seed(0)
    x = torch.randn(1280, 64)
    y = (x @ torch.randn(64, 10)).argmax(1)
    model = nn.Sequential(*(m for k in range(3) for m in (nn.Linear(64 if k == 0 else 100, 100), nn.ReLU())), nn.Linear(100, 10))
    for layer in model[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    opt = torch.optim.SGD(model.parameters(), lr=0.05 if passes == "batches" else 3.0, momentum=0.9)
    with doctor.watch(model, opt) as seen:
        for k in range(1, 1200 if passes == "batches" else 150):
            i = torch.randint(0, 1280, (8,))
            if passes == "batches":
                loss = F.cross_entropy(model(x[i]), y[i])
                (loss / 16 if divide else loss).backward()
            else:
                out = model(x[i])
                for _ in range(4):
                    F.cross_entropy(out, y[i]).backward(retain_graph=True)
            if k % 16 == 0 or passes == "losses":
                opt.step()
                opt.zero_grad()
    found = [f for f in seen.report().findings if f.rule == "learning-rate-too-high" and f.severity != "info"]
    if passes == "losses":
        assert found and "batches" not in found[0].message
    elif divide:
        assert not found
    else:
        assert "each step sums the gradients of 16 batches" in found[0].message
        first = found[0].fixes[0].prescription
        assert (first.treatment, first.arguments) == ("divide-loss", {"by": 16}) and first.span.file == __file__


def test_weights_that_were_not_loaded_explain_a_rate_that_seems_too_high():
    loaded, rate = Finding("GD904", "weights-not-loaded", "error", "m"), Finding("GD701", "learning-rate-too-high", "warning", "m")
    first, second = _grouped([rate, loaded], {"GD701": LearningRateTooHigh.explains, "GD904": WeightsNotLoaded.explains})
    assert first.rule == "weights-not-loaded" and first.related == (second.fingerprint,)
