"""Real models, judged by their own figures: healthy ones stay quiet, sick ones are named by their root cause first."""
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import nn

import gradcheck_doctor as doctor
from gradcheck_doctor.targets.infer import infer


def serious(report):
    return [f.rule for f in report.findings if f.severity != "info"]


@pytest.mark.parametrize("name", zoo.HEALTHY)
def test_healthy_networks_are_quiet(name):
    build, batch, loss = zoo.HEALTHY[name]
    assert serious(doctor.audit(build(), batch(), loss)) == []


@pytest.mark.parametrize(("name", "build"), list(zoo.tiny_transformers()), ids=lambda v: v if isinstance(v, str) else "")
def test_transformers_are_quiet(name, build):
    model = build()
    report = doctor.audit(model, infer(model))
    assert serious(report) == []
    assert not [s for s in report.recording.blind_spots if "stopped" in s.reason]


def mlp(depth, activation, init=None, width=64):
    if init is None:
        layers = [nn.Linear(32, width), activation()]
        for _ in range(depth - 2):
            layers += [nn.Linear(width, width), activation()]
        return nn.Sequential(*layers, nn.Linear(width, 10))
    return zoo.stack(depth, width, activation, init)


def glorot_relu(w):
    nn.init.xavier_normal_(w)


def dead():
    model = mlp(4, nn.ReLU)
    for layer in model[:-1]:
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.bias, -10.0)
    return model


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(16))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.healthy = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
        self.sick = nn.Sequential(*[m for _ in range(16) for m in (nn.Linear(32, 32), nn.ReLU())])
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(torch.cat([self.healthy(x), self.sick(x)], 1))


SICK = {
    "relu default 8": (lambda: mlp(8, nn.ReLU), F.cross_entropy, "init-activation-mismatch"),
    "relu default 20": (lambda: mlp(20, nn.ReLU), F.cross_entropy, "init-activation-mismatch"),
    "relu glorot 34": (lambda: mlp(34, nn.ReLU, glorot_relu), F.cross_entropy, "init-activation-mismatch"),
    "relu n(0,1)": (lambda: mlp(4, nn.ReLU, nn.init.normal_), F.cross_entropy, "init-scale"),
    "relu u(0.05)": (lambda: mlp(8, nn.ReLU, lambda w: nn.init.uniform_(w, -0.05, 0.05)), F.cross_entropy, "init-scale"),
    "zeros": (lambda: mlp(3, nn.ReLU, nn.init.zeros_), F.cross_entropy, "symmetric-init"),
    "tanh default 20": (lambda: mlp(20, nn.Tanh), F.cross_entropy, "init-activation-mismatch"),
    "sigmoid 6": (lambda: mlp(6, nn.Sigmoid, nn.init.xavier_normal_), F.cross_entropy, "activation-choice"),
    "selu default 20": (lambda: mlp(20, nn.SELU), F.cross_entropy, "init-activation-mismatch"),
    "bias -10": (dead, F.cross_entropy, "bias-init"),
    "functional": (Functional, F.cross_entropy, "init-activation-mismatch"),
    "branch": (Branch, F.cross_entropy, "init-activation-mismatch"),
    "double softmax": (lambda: nn.Sequential(nn.Linear(32, 10), nn.Softmax(1)), F.cross_entropy, "loss-input-mismatch"),
    "relu output": (lambda: nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10), nn.ReLU()), F.cross_entropy, "output-activation-mismatch"),
    "one-unit softmax": (lambda: nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1), nn.Softmax(1)),
                         lambda o, t: F.binary_cross_entropy(o[:, 0], (t > 4).float()), "single-unit-softmax"),
    "hidden softmax": (lambda: nn.Sequential(nn.Linear(32, 32), nn.Softmax(1), nn.Linear(32, 10)), F.cross_entropy, "hidden-softmax"),
}


@pytest.mark.parametrize("name", SICK)
def test_the_root_cause_comes_first(name):
    build, loss, rule = SICK[name]
    report = doctor.audit(build(), (torch.randn(128, 32), torch.randint(0, 10, (128,))), loss)
    assert serious(report)[:1] == [rule], str(report)


def test_depth_two_default_init_is_at_most_info():
    assert serious(doctor.audit(mlp(2, nn.ReLU), (torch.randn(128, 32), torch.randint(0, 10, (128,))), F.cross_entropy)) == []


def test_trained_weights_are_not_called_badly_initialised():
    model = mlp(12, nn.ReLU)
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.weight.data = torch.randn_like(layer.weight) ** 3 * 0.02
    report = doctor.audit(model, (torch.randn(128, 32), torch.randint(0, 10, (128,))), F.cross_entropy)
    assert not report.has("init-activation-mismatch")


def test_same_recording_same_findings():
    from gradcheck_doctor.rules.engine import diagnose
    recording = doctor.audit(mlp(20, nn.ReLU), torch.randn(64, 32)).recording
    assert diagnose(recording) == diagnose(recording)


def test_select_and_ignore():
    model, x = mlp(20, nn.ReLU), torch.randn(64, 32)
    assert {f.code for f in doctor.audit(model, x, select=["GD3"]).findings} == {"GD301"}
    assert not doctor.audit(model, x, ignore=["init-activation-mismatch"]).has("GD102")


def test_assert_healthy_raises_with_the_findings():
    with pytest.raises(AssertionError, match="GD102 init-activation-mismatch"):
        doctor.assert_healthy(mlp(20, nn.ReLU), torch.randn(64, 32))
    doctor.assert_healthy(mlp(2, nn.ReLU), torch.randn(64, 32))


@pytest.mark.parametrize(("divisor", "found"), [(None, True), (16, False)])
def test_a_sum_that_is_divided_right_after_is_a_mean(divisor, found):
    def loss(output, target):
        total = F.cross_entropy(output, target, reduction="sum")
        return total if divisor is None else total / divisor

    report = doctor.audit(mlp(3, nn.ReLU), (torch.randn(16, 32), torch.randint(0, 10, (16,))), loss)
    assert report.has("GD606") is found


class Skips(nn.Module):
    """A deep plain stack behind a small part with a skip."""

    def __init__(self):
        super().__init__()
        self.first, self.deep = nn.Linear(32, 32), mlp(16, nn.Sigmoid, width=32)

    def forward(self, x):
        return self.deep(x + self.first(x))


@pytest.mark.parametrize(("build", "cures"), [
    (lambda: mlp(6, nn.Sigmoid), ["replace-activation-relu", "insert-norm"]),
    (lambda: mlp(24, nn.Sigmoid), ["replace-activation-selu", "replace-activation-relu", "insert-norm"]),
    (Skips, ["insert-norm", "replace-activation-relu"])])
def test_a_deep_plain_stack_gets_selu_first(build, cures):
    """ReLU with He is a matter of the draw from a dozen layers on; SELU holds a plain dense stack level."""
    found = doctor.audit(build(), (torch.randn(64, 32), torch.randint(0, 10, (64,))), F.cross_entropy).findings
    fixes = next(f for f in found if f.rule == "activation-choice").fixes
    assert [{"he normal": "replace-activation-relu", "lecun normal": "replace-activation-selu"}.get(f.prescription.arguments.get("scheme"), f.prescription.treatment)
            for f in fixes] == cures
