"""Faults of the loss, the batch and the loop, each beside a look-alike that must stay quiet."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradcheck_doctor as doctor
from gradcheck_doctor.integrations.script import run_script


def train(loss_function, *, lr=0.05, steps=80, make=torch.optim.SGD, outputs=1, width=32, every="auto", **options):
    """Report on a small regression net; `loss_function` takes (prediction, target of shape (N, 1))."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, outputs))
    x = torch.randn(256, 8)
    y = x[:, :1] * 2 + x[:, 1:2] ** 2
    opt = make(model.parameters(), lr=lr, **options)
    with doctor.watch(model, opt, every=every) as seen:
        for step in range(steps):
            i = torch.arange(32) + 32 * (step % 8)
            opt.zero_grad()
            loss_function(model(x[i]), y[i]).backward()
            opt.step()
    return seen.report()


def serious(report):
    return [f.rule for f in report.findings if f.severity != "info"]


def test_broadcast_shapes_are_an_error_and_equal_ones_are_not():
    assert serious(train(lambda p, y: F.mse_loss(p, y.squeeze(1))))[0] == "loss-target-mismatch"
    assert serious(train(F.mse_loss, steps=150)) == []


def test_all_outputs_compared_with_one_class_number():
    def loss(p, y):
        return F.mse_loss(p, y.clamp(0, 3).round().expand_as(p))
    assert serious(train(loss, outputs=4))[0] == "loss-target-mismatch"


@pytest.mark.parametrize("by_hand", [lambda p, y: ((p - y) ** 2).mean(), lambda p, y: (y - p).pow(2).mean(), lambda p, y: (p - y).square().mean()])
def test_a_squared_error_by_hand_is_known(by_hand):
    report = train(by_hand, steps=20)
    loss = report.recording.losses[0]
    assert (loss.op, loss.reduction) == ("mse_loss", "mean") and loss.target_std > 1
    assert loss.value == pytest.approx(report.recording.curve[0][1], rel=1e-5)


def test_a_difference_inside_the_model_is_no_loss():
    report = train(lambda p, y: (p - 1.0).exp().mean(), steps=12, lr=1e-3)
    assert [x.op for x in report.recording.losses] == ["scalar"]


def test_a_summed_loss_is_the_root_only_where_its_steps_do_harm():
    def summed(p, y):
        return F.mse_loss(p, y, reduction="sum")
    assert serious(train(summed, lr=0.02, momentum=0.9))[0] == "summed-loss"
    assert serious(train(summed, lr=3e-4, steps=150)) == []


def test_weight_decay_that_dominates():
    report = train(F.mse_loss, make=torch.optim.Adam, lr=3e-3, weight_decay=20.0, steps=120)
    assert serious(report)[0] == "decay-dominates"
    assert "decay-dominates" not in serious(train(F.mse_loss, make=torch.optim.AdamW, lr=3e-3, weight_decay=0.5, steps=120))


def test_one_bad_batch_is_told_from_a_large_rate():
    calls = []

    def loss(p, y):
        calls.append(1)
        return F.mse_loss(p, y if len(calls) != 12 else y + 4000)
    found = serious(train(loss, lr=0.02, momentum=0.9))
    assert found[0] == "gradient-spike"
    assert "gradient-spike" not in serious(train(F.mse_loss, lr=3.0))[:1]


def test_raw_targets_that_are_slow_to_reach():
    assert "unscaled-input" in serious(train(lambda p, y: F.mse_loss(p, 300 * y), make=torch.optim.Adam, lr=2e-2, steps=120))
    assert serious(train(lambda p, y: F.mse_loss(p, 3 * y), make=torch.optim.Adam, lr=2e-2, steps=150)) == []


def test_a_log_of_zero_is_named_with_its_cure():
    def bce(p, y):
        p = torch.sigmoid(p * 400)
        t = (y > 0).float()
        return -(t * torch.log(p) + (1 - t) * torch.log(1 - p)).mean()
    report = train(bce, every=1, steps=20)
    first = report.findings[0]
    assert first.rule in ("nonfinite-loss", "nonfinite-gradient") and [f.prescription.treatment for f in first.fixes] == ["clamp-input"]
    assert first.location.line == bce.__code__.co_firstlineno + 3


def test_a_root_of_zero_breaks_the_gradient_before_the_values():
    def distance(p, y):
        return torch.sqrt(((p - p.detach()) ** 2).sum(1)).mean()
    report = train(distance, every=1, steps=12)
    assert report.findings[0].rule == "nonfinite-gradient" and report.findings[0].op == "sqrt"


def test_a_view_that_should_be_a_transpose():
    class Steps(nn.Module):
        def __init__(self, wrong):
            super().__init__()
            self.inp, self.out, self.wrong = nn.Linear(6, 16), nn.Linear(16, 4), wrong

        def forward(self, x):
            n, c, t = x.shape
            return self.out(torch.relu(self.inp(x.reshape(t, n, c) if self.wrong else x.permute(2, 0, 1))).mean(0))

    def report(wrong):
        torch.manual_seed(0)
        model = Steps(wrong)
        opt = torch.optim.Adam(model.parameters(), 3e-3)
        with doctor.watch(model, opt) as seen:
            for _ in range(60):
                y = torch.randint(0, 4, (32,))
                x = 0.3 * torch.randn(32, 6, 20)
                x[torch.arange(32), y] += 1.0
                opt.zero_grad()
                F.cross_entropy(model(x), y).backward()
                opt.step()
        return seen.report()
    assert serious(report(True))[0] == "batch-mixing" and serious(report(False)) == []


def test_a_teacher_gets_no_gradient_and_that_is_right():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    teacher = copy.deepcopy(student)
    opt = torch.optim.Adam(student.parameters(), 1e-2)
    x = torch.randn(128, 8)
    with doctor.watch([student, teacher], opt) as seen:
        for _ in range(60):
            opt.zero_grad()
            (F.cross_entropy(student(x), x[:, :3].argmax(1)) + F.mse_loss(student(x), teacher(x).detach())).backward()
            opt.step()
    assert "no-gradient" not in serious(seen.report())


def test_zero_last_layers_of_a_flow_are_a_design_and_zero_hidden_layers_are_not():
    def report(zero):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
        for layer in zero(model):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        x = torch.randn(256, 4)
        opt = torch.optim.Adam(model.parameters(), 1e-2)
        with doctor.watch(model, opt) as seen:
            for _ in range(60):
                opt.zero_grad()
                s, t = model(x).chunk(2, 1)
                (0.5 * (x[:, :1] * torch.tanh(s).exp() + t) ** 2 - torch.tanh(s)).mean().backward()
                opt.step()
        return seen.report()
    assert not report(lambda m: [m[4]]).has("symmetric-init")
    assert report(lambda m: [m[0], m[2], m[4]]).has("symmetric-init")


def test_players_against_each_other_are_judged_by_errors_only():
    torch.manual_seed(0)
    maker = nn.Sequential(*[x for _ in range(3) for x in (nn.Linear(16, 16), nn.ReLU())], nn.Linear(16, 2))
    critic = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    a, b = torch.optim.Adam(maker.parameters(), 1e-3), torch.optim.Adam(critic.parameters(), 1e-3)
    with doctor.watch([maker, critic], [a, b]) as seen:
        for _ in range(40):
            fake = maker(torch.randn(32, 16))
            b.zero_grad()
            (F.softplus(-critic(torch.randn(32, 2))).mean() + F.softplus(critic(fake.detach())).mean()).backward()
            b.step()
            a.zero_grad()
            F.softplus(-critic(fake)).mean().backward()
            a.step()
    assert not [f.rule for f in seen.report().findings if f.severity == "warning"]


def test_a_copied_body_counts_as_trained(tmp_path):
    script = tmp_path / "transfer.py"
    script.write_text("""\
import copy, torch
from torch import nn
torch.manual_seed(0)
body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
def fit(model, opt, steps):
    for _ in range(steps):
        x = torch.randn(64, 8)
        loss = nn.functional.cross_entropy(model(x), x[:, :4].argmax(1))
        opt.zero_grad(); loss.backward(); opt.step()
first = nn.Sequential(body, nn.Linear(16, 4))
fit(first, torch.optim.Adam(first.parameters(), 1e-2), 60)
second = nn.Sequential(copy.deepcopy(body), nn.Linear(16, 4))
fit(second, torch.optim.SGD(second.parameters(), 1e-3), 12)
""")
    recording = run_script(str(script), None, [], every="auto").recording
    trained = {p.name for p in recording.parameters if p.trained}
    assert trained == {"Sequential_1.0.0.weight", "Sequential_1.0.2.weight"}


def test_a_signal_that_an_adjacency_matrix_mixes_is_one_run():
    """adjacency @ (h @ W): the constant of the data stands in front of the signal."""
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.weights = nn.ParameterList(nn.Parameter(torch.randn(16, 16) * (2 / 16) ** 0.5) for _ in range(8))

        def forward(self, x, mixing):
            for weight in self.weights[:-1]:
                x = torch.relu(mixing @ (x @ weight))
            return mixing @ (x @ self.weights[-1])

    neighbours = (torch.rand(60, 60, generator=torch.Generator().manual_seed(1)) < 0.2).float() + torch.eye(60)
    x = torch.randn(60, 16, generator=torch.Generator().manual_seed(2))
    for mixing, sick in ((neighbours, True), (neighbours / neighbours.sum(1, keepdim=True).sqrt() / neighbours.sum(0).sqrt(), False)):
        found = doctor.audit(Graph(), (x, mixing))
        assert found.has("signal-explosion") == sick
        assert found.has("exploding-gradient") == sick
