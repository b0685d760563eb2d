"""Faults that scripts of others brought, each beside a look-alike that must stay quiet."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradcheck_doctor as doctor

X = torch.randn(512, 12, generator=torch.Generator().manual_seed(1))
Y = (X @ torch.randn(12, 4, generator=torch.Generator().manual_seed(2))).argmax(1)


def report(model, optimizer, *, steps=240, loss=F.cross_entropy, x=X, y=Y, clip=None):
    with doctor.watch(model, optimizer) as seen:
        for step in range(steps):
            i = torch.arange(32) + 32 * (step % (len(x) // 32))
            optimizer.zero_grad()
            loss(model(x[i]), y[i]).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    return seen.report()


def serious(found):
    return [f.rule for f in found.findings if f.severity != "info"]


def mlp(*extra):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), *extra, nn.ReLU(), nn.Linear(32, 4))


class Dense(nn.Module):
    """x @ W: the units are the columns."""

    def __init__(self, inputs, outputs, constant):
        super().__init__()
        torch.manual_seed(0)
        self.kernel = nn.Parameter(torch.full((inputs, outputs), 1 / inputs) if constant else torch.randn(inputs, outputs) / inputs**0.5)

    def forward(self, x):
        return x @ self.kernel


@pytest.mark.parametrize("constant", [True, False])
def test_equal_columns_of_a_hand_written_layer(constant):
    model = nn.Sequential(Dense(12, 24, constant), nn.ReLU(), Dense(24, 24, constant), nn.ReLU(), nn.Linear(24, 4))
    found = serious(report(model, torch.optim.Adam(model.parameters(), 1e-2)))
    assert found[:1] == (["symmetric-init"] if constant else [])


@pytest.mark.parametrize(("momentum", "steps", "sick"), [(0.001, 240, True), (0.0, 240, True), (1e-12, 240, True), (0.0, 60, False),
                                                          (0.1, 240, False), (0.01, 240, False), (0.001, 120, False), (None, 240, False)])
def test_running_statistics_that_lag(momentum, steps, sick):
    """The factor by which eval mode is wrong, from the statistics alone; against the batches themselves."""
    norm = nn.BatchNorm1d(32, momentum=momentum)
    model = mlp(norm)
    model[0].weight.data *= 4
    found = report(model, torch.optim.Adam(model.parameters(), 1e-4), steps=steps)
    assert found.has("train-eval-mismatch") == sick
    if sick:
        row, values = found.recording.notes["batchnorm"]["1"], model[0](X).detach()
        factor = (norm.running_var / values.var(0)).log().abs().div(2).median().exp().item()
        assert row["tracked"] == steps and row["left"] == pytest.approx((1 - momentum)**steps)
        assert found.findings[0].evidence["scale"] == pytest.approx(factor, rel=0.1)


def test_statistics_that_never_move_harm_nobody_whose_signal_is_like_them():
    model = nn.Sequential(nn.BatchNorm1d(12, momentum=0.0), nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))
    assert not report(model, torch.optim.Adam(model.parameters(), 1e-3), steps=240).has("train-eval-mismatch")


def test_statistics_that_lag_in_a_short_run_count_where_the_model_was_evaluated():
    for evaluated in (True, False):
        model = mlp(nn.BatchNorm1d(32, momentum=0.001))
        model[0].weight.data *= 4
        with doctor.watch(model, optimizer := torch.optim.Adam(model.parameters(), 1e-2)) as seen:
            for step in range(100):
                optimizer.zero_grad()
                F.cross_entropy(model(X[32 * (step % 16):][:32]), Y[32 * (step % 16):][:32]).backward()
                optimizer.step()
            model.train(not evaluated)
        assert seen.report().has("train-eval-mismatch") == evaluated


@pytest.mark.parametrize("case", ["stale", "trained", "frozen", "loaded", "learns"])
def test_batch_norm_in_eval_mode_all_along(case):
    norm = nn.BatchNorm1d(12)
    if case == "loaded":
        norm.load_state_dict({**nn.BatchNorm1d(12).state_dict(), "running_mean": torch.ones(12)})
    model = nn.Sequential(norm, nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))
    norm.requires_grad_(case != "frozen")
    model.train(case == "trained")
    found = report(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), steps=240, x=X * (1 if case == "learns" else 300))
    first = [(f.rule, f.severity) for f in found.findings if f.severity != "info"][:1]
    wanted = {"stale": "error", "learns": "warning"}.get(case)
    assert (first == [("train-eval-mismatch", wanted)]) == (wanted is not None), first
    if case == "stale":
        assert found.findings[0].related


@pytest.mark.parametrize(("clip", "optimizer", "sick"), [(1e-4, torch.optim.SGD, True), (1.0, torch.optim.SGD, False), (1e-4, torch.optim.Adam, False)])
def test_a_clip_that_starves_the_steps(clip, optimizer, sick):
    model = mlp()
    found = report(model, optimizer(model.parameters(), lr=0.05 if optimizer is torch.optim.SGD else 1e-2), clip=clip)
    assert ("clip-threshold" in serious(found)) == sick


class Tokens(nn.Module):
    """Patches as tokens; `order` names the axes that the reshape sees."""

    def __init__(self, order):
        super().__init__()
        torch.manual_seed(0)
        self.order, self.patch, self.head = order, nn.Conv2d(1, 6, 2, 2), nn.Linear(24, 4)

    def forward(self, x):
        z = torch.relu(self.patch(x.view(-1, 1, 4, 4)))
        z = z.permute(*self.order).reshape(len(x), 4, 6) if self.order else z
        return self.head(z.flatten(1))


@pytest.mark.parametrize(("order", "sick"), [((2, 3, 0, 1), True), ((0, 2, 3, 1), False), ((), False)])
def test_a_reshape_behind_a_permute_that_moved_the_batch(order, sick):
    model, x = Tokens(order), torch.randn(512, 16, generator=torch.Generator().manual_seed(1))
    found = report(model, torch.optim.Adam(model.parameters(), 5e-3), x=x, y=(x[:, 0] > 0).long() + 2 * (x[:, 5] > 0).long(), steps=120)
    assert ("batch-mixing" in serious(found)) == sick


@pytest.mark.parametrize(("decay", "sick"), [(0.5, True), (1e-3, False)])
def test_decay_that_leaves_nothing_of_the_weights(decay, sick):
    """In the end gradient and decay balance each other; how it began, and what is left, tell."""
    model = mlp()
    found = serious(report(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=decay)))
    assert (found[:1] == ["decay-dominates"]) == sick


def test_a_sum_divided_by_a_small_number_still_is_a_sum():
    """Lightning divides every loss by the number of accumulated batches, which is mostly 1."""
    def loss(p, y):
        return F.cross_entropy(p, y, reduction="sum") / 1

    model = mlp()
    assert serious(report(model, torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9), loss=loss))[:1] == ["summed-loss"]
    model = mlp()
    mean = report(model, torch.optim.SGD(model.parameters(), lr=0.1), loss=lambda p, y: F.cross_entropy(p, y, reduction="sum") / len(y))
    assert not mean.has("summed-loss")


def test_a_large_epsilon_comes_first():
    torch.manual_seed(0)
    layers = [m for k in range(7) for m in (nn.Linear(12 if k == 0 else 32, 32), nn.SiLU())]
    model = nn.Sequential(*layers, nn.Linear(32, 4))
    found = serious(report(model, torch.optim.Adam(model.parameters(), 1e-3, eps=1.0)))
    assert found[0] == "adam-epsilon"


@pytest.mark.parametrize(("p", "depth", "sick"), [(0.95, 2, True), (0.5, 12, True), (0.5, 2, False), (0.1, 12, False)])
def test_dropout_that_leaves_nothing(p, depth, sick):
    torch.manual_seed(0)
    layers = []
    for k in range(depth):
        layer = nn.Linear(12 if k == 0 else 32, 32)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        layers += [layer, nn.ReLU(), nn.Dropout(p)]
    model = nn.Sequential(*layers, nn.Linear(32, 4))
    found = report(model, torch.optim.Adam(model.parameters(), 2e-3))
    assert (serious(found)[:1] == ["dropout-strength"]) == sick
    if sick:
        assert [f.prescription.arguments["p"] for f in found.findings[0].fixes] == ([0.05, 0.1] if p > 0.9 else [0.1, 0.0])


def test_dropout_in_branches_beside_a_skip_is_not_multiplied():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(12), nn.Linear(12, 12)

        def forward(self, x):
            return x + F.dropout(self.linear(self.norm(x)), 0.5, self.training)

    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(12)), nn.Linear(12, 4))
    assert not report(model, torch.optim.SGD(model.parameters(), lr=1e-5), steps=60).has("dropout-strength")


class Gated(nn.Module):
    """A highway layer; its gate starts at `start`."""

    def __init__(self, start):
        super().__init__()
        self.value, self.gate = nn.Linear(12, 12), nn.Linear(12, 12)
        nn.init.normal_(self.gate.weight, std=0.01)
        nn.init.constant_(self.gate.bias, start)

    def forward(self, x):
        g = torch.sigmoid(self.gate(x))
        return g * torch.relu(self.value(x)) + (1 - g) * x


@pytest.mark.parametrize(("start", "sick"), [(-2.0, False), (-1.0, False), (-12.0, True)])
def test_a_gate_may_start_nearly_shut(start, sick):
    torch.manual_seed(0)
    model = nn.Sequential(*(Gated(start) for _ in range(3)), nn.Linear(12, 4))
    assert report(model, torch.optim.SGD(model.parameters(), lr=1e-6), steps=60).has("bias-init") == sick


@pytest.mark.parametrize(("gain", "sick"), [(12.0, True), (5 / 3, False), (1.0, False)])
def test_an_orthogonal_weight_is_judged_by_its_gain(gain, sick):
    torch.manual_seed(0)
    layers, width = [], 1
    for _ in range(5):
        conv = nn.Conv2d(width, 12, 3, padding=1)
        nn.init.orthogonal_(conv.weight, gain=gain)
        nn.init.zeros_(conv.bias)
        layers, width = [*layers, conv, nn.Tanh()], 12
    model = nn.Sequential(nn.Unflatten(1, (1, 3, 4)), *layers, nn.Flatten(), nn.Linear(144, 4))
    found = report(model, torch.optim.SGD(model.parameters(), lr=1e-4), steps=60)
    assert ("init-scale" in serious(found)) == sick and found.has("saturated-activation") == sick


@pytest.mark.parametrize(("rate", "severity"), [(1e-4, "error"), (2.5e-4, "warning"), (3e-2, None)])
def test_updates_lost_in_bfloat16_are_said_also_where_the_run_learns(rate, severity):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 4)).bfloat16()
    found = report(model, torch.optim.Adam(model.parameters(), rate), steps=1600, x=X.bfloat16())
    finding = next((f for f in found.findings if f.rule == "lost-update" and f.severity != "info"), None)
    assert (finding.severity if finding else None) == severity
    if finding:
        assert [fix.prescription.treatment for fix in finding.fixes] == ["float32-weights"]


@pytest.mark.parametrize(("cell", "std", "sick"), [(nn.GRU, 1.0, True), (nn.LSTM, 1.0, True), (nn.GRU, None, False), (nn.LSTM, 0.2, False)])
def test_gates_that_start_saturated(cell, std, sick):
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = cell(4, 48, batch_first=True), nn.Linear(48, 2)
            for name, p in self.cell.named_parameters():
                if std is not None and "weight" in name:
                    nn.init.normal_(p, std=std)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    found = doctor.audit(Net(), (torch.randn(32, 12, 4), torch.randint(2, (32,))), loss=F.cross_entropy)
    finding = next((f for f in found.findings if f.rule == "recurrent-init"), None)
    assert (finding is not None) == sick
    if finding:
        assert finding.severity == "error" and "gates are saturated" in finding.message
        model, x = Net(), torch.randn(32, 12, 4)
        assert doctor.treat(model, doctor.audit(model, x))
        assert not doctor.audit(model, x).has("recurrent-init")


@pytest.mark.parametrize(("axis", "bags", "sick"), [(0, 12, True), (-3, 12, True), (1, 12, False), (0, 32, False)])
def test_a_softmax_over_the_samples(axis, bags, sick):
    """Not where another axis is as long: a matrix of similarities between the samples is meant to be taken both ways."""
    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.score, self.out = nn.Linear(6, 1), nn.Linear(6, 4)

        def forward(self, x):
            return self.out((torch.softmax(self.score(x), dim=axis) * x).sum(1))

    x = torch.randn(512, bags, 6, generator=torch.Generator().manual_seed(5))
    model = Bags()
    found = report(model, torch.optim.Adam(model.parameters(), 1e-3), x=x, steps=60)
    finding = next((f for f in found.findings if f.rule == "batch-mixing"), None)
    assert (finding is not None) == sick
    if finding:
        assert finding.severity == "warning"
        assert [f.prescription.arguments for f in finding.fixes] == [{"old": axis, "dim": 1}]


def test_of_several_losses_the_constant_guesses_add_up():
    """The larger loss falls to the mean of its targets, which is no learning; the smaller one is drowned."""
    torch.manual_seed(0)
    trunk, rent, kind = nn.Sequential(nn.Linear(12, 32), nn.ReLU()), nn.Linear(32, 1), nn.Linear(32, 4)
    model = nn.ModuleList([trunk, rent, kind])
    prices = 1000 + 200 * torch.randn(512, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with doctor.watch(model, optimizer) as seen:
        for step in range(400):
            i = torch.arange(32) + 32 * (step % 16)
            h = trunk(X[i])
            optimizer.zero_grad()
            (F.mse_loss(rent(h).squeeze(1), prices[i]) + F.cross_entropy(kind(h), Y[i])).backward()
            optimizer.step()
    assert serious(seen.report())[:1] == ["unscaled-input"]
