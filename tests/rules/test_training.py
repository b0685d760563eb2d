"""Faults that show only while training, and the healthy run that stays quiet."""
import pathlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradcheck_doctor as doctor


def run(*, lr=0.1, zero=True, model=None, steps=60, optimizer=None, data=None, loss_function=F.cross_entropy):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    opt = optimizer(model) if optimizer else torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    x, y = data or (torch.randn(256, 8), None)
    y = (x[:, :3]).argmax(1) if y is None else y
    with doctor.watch(model, opt) as seen:
        for step in range(steps):
            i = torch.arange(32) + 32 * (step % 8)
            if zero:
                opt.zero_grad()
            loss_function(model(x[i]), y[i]).backward()
            opt.step()
    return seen.report()


def serious(report):
    return [f.rule for f in report.findings if f.severity != "info"]


def test_a_run_that_learns_is_quiet():
    assert serious(run(steps=150)) == []


def test_missing_zero_grad_is_the_first_finding():
    assert serious(run(zero=False))[0] == "stale-gradient"


def test_accumulation_is_not_stale():
    torch.manual_seed(0)
    model = nn.Linear(8, 3)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    with doctor.watch(model, opt, every=1) as seen:
        for _ in range(20):
            opt.zero_grad()
            for _ in range(3):
                F.cross_entropy(model(torch.randn(8, 8)), torch.randint(0, 3, (8,))).backward()
            opt.step()
    assert not seen.report().has("stale-gradient")


def test_learning_rate_a_thousand_times_too_high():
    report = run(lr=30.0)
    assert {"learning-rate-too-high", "dead-relu", "nonfinite-loss"} & set(serious(report))


def test_learning_rate_far_too_low():
    report = run(lr=1e-7)
    assert serious(report)[0] == "learning-rate-too-low"
    rates = [fix.prescription.arguments["lr"] for f in report.findings if f.rule == "learning-rate-too-low" for fix in f.fixes]
    assert len(rates) == len(set(rates)) == 2 and min(rates) > 0           # from the updates seen, and what people begin with


def test_adam_epsilon():
    report = run(optimizer=lambda m: torch.optim.Adam(m.parameters(), 1e-3, eps=1.0))
    assert serious(report)[0] == "adam-epsilon"


def test_parameters_in_no_optimizer():
    report = run(optimizer=lambda m: torch.optim.SGD(m[2:].parameters(), 1e-3))
    assert "unoptimized-parameter" in serious(report)


def test_clip_by_value_that_flattens_everything():
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
    opt = torch.optim.SGD(model.parameters(), 0.01)
    with doctor.watch(model, opt, every=1) as seen:
        for _ in range(30):
            x = torch.randn(32, 8)
            opt.zero_grad()
            F.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
            nn.utils.clip_grad_value_(model.parameters(), 1e-5)
            opt.step()
    report = seen.report()
    assert "clip-by-value" in serious(report)
    assert next(f for f in report.findings if f.rule == "clip-by-value").location.file.endswith("test_training.py")


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_gradients_are_unscaled(scale):
    """The loss scale of a GradScaler does not show in the recorded gradients."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale != 1.0)
    with doctor.watch(model, opt, every=1) as seen:
        for _ in range(3):
            opt.zero_grad()
            scaler.scale(F.mse_loss(model(torch.ones(4, 4)), torch.zeros(4, 2))).backward()
            scaler.step(opt)
            scaler.update()
    recording = seen.report().recording
    torch.manual_seed(0)
    reference = nn.Linear(4, 2)
    F.mse_loss(reference(torch.ones(4, 4)), torch.zeros(4, 2)).backward()
    wanted = torch.cat([p.grad.flatten() for p in reference.parameters()]).norm().item()
    assert recording.steps[0].grad_norm == pytest.approx(wanted, rel=1e-3)


class Sequences(nn.Module):
    """A sequence layer over (batch, time, features) or (time, batch, features), and a score of its last step."""

    def __init__(self, inner, time_first=False):
        super().__init__()
        self.inner, self.out, self.time_first = inner, nn.Linear(8, 3), time_first

    def forward(self, x):
        x = x.transpose(0, 1) if self.time_first else x
        h = self.inner(x)
        h = h[0] if isinstance(h, tuple) else h
        return self.out(h[-1] if self.time_first else h[:, -1])


INNER = {"lstm": lambda first: nn.LSTM(8, 8, batch_first=first), "gru": lambda first: nn.GRU(8, 8, batch_first=first),
         "encoder": lambda first: nn.TransformerEncoderLayer(8, 2, 16, batch_first=first)}


@pytest.mark.parametrize("kind", INNER)
def test_the_batch_taken_for_time(kind):
    data = torch.randn(256, 7, 8), torch.randint(0, 3, (256,))
    torch.manual_seed(0)
    [found] = [f for f in run(model=Sequences(INNER[kind](False)), data=data, lr=1e-3).findings if f.rule == "batch-mixing"]
    assert found.severity == "warning" and found.fixes[0].prescription.treatment == "batch-first"
    assert not run(model=Sequences(INNER[kind](True)), data=data, lr=1e-3).has("batch-mixing")
    assert not run(model=Sequences(INNER[kind](False), time_first=True), data=data, lr=1e-3).has("batch-mixing")


@pytest.mark.parametrize("shape", [(32, 3, 8), (32, 1, 8)])
def test_a_target_for_each_step_of_a_time_first_sequence_is_no_mix(shape):
    """(time, batch) targets, and a single sequence."""
    model = nn.LSTM(8, 8)
    data = torch.randn(256, *shape[1:]), torch.randn(256, *shape[1:])
    report = run(model=model, data=data, loss_function=lambda output, y: F.mse_loss(output[0], y), lr=1e-3)
    assert not report.has("batch-mixing")


@pytest.mark.parametrize(("axis", "found"), [(0, True), (1, False), (-1, False)])
def test_log_softmax_over_the_samples(axis, found):
    model = nn.Sequential(nn.Linear(8, 3), nn.LogSoftmax(dim=axis))
    assert run(model=model, loss_function=F.nll_loss).has("loss-input-mismatch") is found


@pytest.mark.parametrize(("ending", "found"), [(nn.Softmax(-1), True), (nn.LogSoftmax(-1), False), (nn.Identity(), False)])
def test_ctc_wants_log_probabilities(ending, found):
    lengths, target = torch.full((32,), 12), torch.randint(1, 5, (32, 4))
    report = run(model=nn.Sequential(nn.Linear(8, 5), ending), data=(torch.randn(256, 12, 8), torch.arange(256)), steps=10,
                 loss_function=lambda output, y: F.ctc_loss(output.transpose(0, 1), target, lengths, torch.full((32,), 4)))
    assert report.has("loss-input-mismatch") is found


@pytest.mark.parametrize(("squash", "op"), [(lambda z: z.softmax(1), "softmax"), (torch.sigmoid, "sigmoid"), (lambda z: z, None)])
def test_the_cure_of_a_squared_error_on_labels_takes_the_raw_scores(squash, op):
    report = run(model=nn.Linear(8, 5), data=(torch.randn(256, 8), torch.randint(5, (256,))), lr=1e-3,
                 loss_function=lambda output, y: F.mse_loss(squash(output), F.one_hot(y, 5).float()))
    finding, = [f for f in report.findings if f.code == "GD605"]
    cure = finding.fixes[0].prescription
    assert (cure.treatment, cure.arguments.get("activation")) == (("score-loss", op) if op else ("replace-loss", None))


@pytest.mark.parametrize(("ending", "options", "found"), [
    (nn.Softplus(), {}, True), (nn.Identity(), {}, False), (nn.Softplus(), {"log_input": False}, False), (nn.Identity(), {"log_input": False}, True)])
def test_a_poisson_likelihood_takes_the_logarithm_of_the_rate_or_the_rate(ending, options, found):
    data = torch.randn(256, 8), torch.randint(0, 9, (256, 1)).float()
    report = run(model=nn.Sequential(nn.Linear(8, 1), ending), data=data, lr=1e-4, steps=10, loss_function=lambda o, y: F.poisson_nll_loss(o, y, **options))
    assert report.has("loss-input-mismatch") is found


@pytest.mark.parametrize(("ending", "scale", "found"), [(nn.Sigmoid(), 3.0, True), (nn.Identity(), 3.0, False), (nn.Sigmoid(), 0.0, False)])
def test_targets_out_of_reach_of_a_loss_of_ones_own(ending, scale, found):
    def pinball(output, y):
        difference = y.unsqueeze(1) - output
        return torch.maximum(0.9 * difference, -0.1 * difference).mean()
    data = torch.randn(256, 8), 0.5 + scale * torch.randn(256)
    report = run(model=nn.Sequential(nn.Linear(8, 3), ending), data=data, lr=1e-3, steps=30, loss_function=pinball)
    assert report.has("output-activation-mismatch") is found


class Drawn(nn.Module):
    """A network that makes the weights of another, added to some in a list that is never called."""

    def __init__(self, cut):
        super().__init__()
        self.maker, self.base, self.cut = nn.Linear(8, 24), nn.ParameterList([torch.randn(8, 3)]), cut

    def forward(self, x):
        made = self.maker(x.mean(0))
        return x @ (self.base[0] + (made.data if self.cut else made).view(8, 3))


@pytest.mark.parametrize("cut", [True, False])
def test_all_that_was_called_gets_no_gradient_beside_a_list_of_parameters(cut):
    assert run(model=Drawn(cut), lr=1e-3).has("no-gradient") is cut


class Pooled(nn.Module):
    """Attention pooling over the positions of a batch of sequences."""

    def __init__(self):
        super().__init__()
        self.score, self.out = nn.Linear(8, 1), nn.Linear(8, 3)

    def forward(self, x):
        return self.out((self.score(x).softmax(1) * x).sum(1))


@pytest.mark.parametrize("length", [1, 5])
def test_attention_over_one_position_is_no_fault(length):
    report = run(model=Pooled(), data=(torch.randn(256, length, 8), torch.randint(0, 3, (256,))), steps=20)
    assert "single-unit-softmax" not in serious(report)


class Masked(nn.Module):
    """Scores of two blocks, the second one hidden, side by side under one softmax."""

    def forward(self, x):
        scores = torch.einsum("bnc,bmc->bnm", x, x)
        hidden = torch.where(torch.ones_like(scores, dtype=torch.bool), torch.tensor(-torch.inf), scores)
        return (torch.cat([scores, hidden], -1).reshape(*scores.shape[:2], -1).softmax(-1)[..., : x.shape[1]] @ x).mean(1)


def test_scores_that_a_mask_hides_are_finite_behind_the_softmax():
    model = nn.Sequential(nn.Linear(8, 8), Masked(), nn.Linear(8, 3))
    assert serious(run(model=model, data=(torch.randn(256, 5, 8), torch.randint(0, 3, (256,))), steps=20)) == []


@pytest.mark.parametrize(("sign", "lr", "found"), [(1, 1e-2, True), (1, 0.1, True), (-1, 1e-2, False)])
def test_log_probabilities_without_their_minus(sign, lr, found):
    """At the higher rate the loss leaves the numbers."""
    def loss(output, y):
        chosen = F.log_softmax(output, 1).gather(1, y[:, None])
        return chosen.mean() if sign > 0 else -chosen.mean()
    report = run(loss_function=loss, steps=150, lr=lr)
    assert (serious(report)[:1] == ["loss-divergence"]) is found
    if found:
        finding = report.findings[0]
        assert "chosen.mean()" in pathlib.Path(__file__).read_text().splitlines()[finding.location.line - 1]
        assert [x.prescription.treatment for x in finding.fixes] == ["negate-loss"]


def test_a_likelihood_that_is_maximised_may_fall_below_0():
    """The density of a narrow normal distribution has a logarithm above 0."""
    def loss(output, y):
        return -torch.distributions.Normal(output[:, 0], 0.01 + F.softplus(output[:, 1])).log_prob(0.0 * y).mean()
    assert "loss-divergence" not in serious(run(loss_function=loss, steps=150, lr=1e-3))


def test_a_loss_that_is_cut_off_from_the_model():
    report = run(loss_function=lambda output, y: torch.tensor(F.cross_entropy(output, y).item(), requires_grad=True))
    finding = report.findings[0]
    assert (finding.code, finding.severity) == ("GD303", "error") and "cut off from the model" in finding.message
    assert ".backward()" in pathlib.Path(__file__).read_text().splitlines()[finding.location.line - 1]


def test_an_optimizer_that_needs_no_gradient_is_left_alone():
    """Evolution: the loss only chooses, the weights are moved by hand; nothing ever has a gradient."""
    model = nn.Linear(8, 3)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    with doctor.watch(model, opt) as seen:
        for _ in range(20):
            with torch.no_grad():
                model.weight += 0.01 * torch.randn_like(model.weight)
            F.cross_entropy(model(torch.randn(8, 8)), torch.randint(0, 3, (8,)))
            opt.step()
    assert not seen.report().has("no-gradient")
