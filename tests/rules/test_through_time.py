"""Gradients through time are measured exactly, vanishing is named in runs that do not learn, and a forgetful start is information."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradcheck_doctor as doctor
from gradcheck_doctor.integrations.script import run_script
from gradcheck_doctor.observe.parameters import _radius_by_powers
from gradcheck_doctor.session import examine
from gradcheck_doctor.treatments.plan import planned


class Fused(nn.Module):
    """An embedding, a fused recurrent layer, a head on the last step."""

    def __init__(self, kind=nn.RNN, batch_first=True, gain=None, **options):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.rnn = kind(16, 24, batch_first=batch_first, **options)
        self.head = nn.Linear(24, 4)
        if gain is not None:
            nn.init.orthogonal_(self.rnn.weight_hh_l0, gain)

    def forward(self, tokens):
        embedded = self.embed(tokens)
        if self.rnn.batch_first:
            return self.head(self.rnn(embedded)[0][:, -1])
        return self.head(self.rnn(embedded.transpose(0, 1))[0][-1])


class Cell(nn.Module):
    def __init__(self, kind=nn.RNNCell, gain=None):
        super().__init__()
        self.cell, self.head = kind(8, 24), nn.Linear(24, 4)
        if gain is not None:
            nn.init.orthogonal_(self.cell.weight_hh, gain)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def tokens(length, count=32):
    return torch.randint(0, 20, (count, length)), torch.randint(0, 4, (count,))


def time_gradients(report):
    return next(o.time_gradients for o in report.recording.operations if o.time_gradients)


def finding(report, rule):
    return next((f for f in report.findings if f.rule == rule), None)


@pytest.mark.parametrize("batch_first", [True, False])
def test_gradients_at_a_fused_layers_input_equal_autograd(batch_first):
    torch.manual_seed(0)
    model, (x, y) = Fused(batch_first=batch_first), tokens(14)
    embedded = model.embed(x).detach().requires_grad_()
    out = model.rnn(embedded if batch_first else embedded.transpose(0, 1))[0]
    F.cross_entropy(model.head(out[:, -1] if batch_first else out[-1]), y).backward()

    seen = time_gradients(doctor.audit(model, (x, y), F.cross_entropy))

    assert seen == pytest.approx(embedded.grad.square().mean(dim=(0, 2)).sqrt().tolist(), rel=1e-4)


def test_gradients_at_a_cell_equal_autograd():
    torch.manual_seed(0)
    model, x, y = Cell(), torch.randn(32, 12, 8), torch.randint(0, 4, (32,))
    states, state = [], None
    for step in x.unbind(1):
        state = model.cell(step, state)
        state.retain_grad()
        states.append(state)
    F.cross_entropy(model.head(state), y).backward()
    wanted = [s.grad.square().mean().sqrt().item() for s in states]

    assert time_gradients(doctor.audit(model, (x, y), F.cross_entropy)) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("options", [{"bidirectional": True}, {}], ids=["two directions", "inputs without gradient"])
def test_what_cannot_be_seen_has_no_row(options):
    """Two directions mix; raw inputs carry no gradient."""
    torch.manual_seed(0)
    model = nn.GRU(8, 16, batch_first=True, **options)
    report = doctor.audit(model, torch.randn(8, 12, 8))
    assert not any(o.time_gradients for o in report.recording.operations)
    assert finding(report, "temporal-gradient") is None


def test_vanishing_is_information_in_an_audit():
    torch.manual_seed(0)
    found = finding(doctor.audit(Fused(), tokens(30), F.cross_entropy), "temporal-gradient")
    assert found.severity == "info" and found.evidence["ratio"] < 1e-3 and found.evidence["steps_of_time"] == 30


def test_a_loss_on_every_step_does_not_vanish():
    class Every(Fused):
        def forward(self, tokens):
            return self.head(self.rnn(self.embed(tokens))[0].mean(1))

    torch.manual_seed(0)
    assert finding(doctor.audit(Every(), tokens(30), F.cross_entropy), "temporal-gradient") is None


def first_symbol(length, gain):
    """The class is the first symbol: what vanishes can't be learned."""
    torch.manual_seed(0)
    model = Fused(gain=gain)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    with doctor.watch(model, opt, every=5) as seen:
        for _ in range(60):
            x, _ = tokens(length)
            opt.zero_grad()
            F.cross_entropy(model(x), x[:, 0] % 4).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
    return seen.report()


@pytest.mark.parametrize(("length", "gain", "severity"), [(40, 0.5, "warning"), (120, 0.5, "info")], ids=["short enough to learn", "too long for any"])
def test_a_run_that_does_not_learn_names_it(length, gain, severity):
    assert finding(first_symbol(length, gain), "temporal-gradient").severity == severity


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_depth_that_is_time_is_no_vanishing_gradient(kind):
    torch.manual_seed(0)
    report = doctor.audit(Cell(kind), (torch.randn(32, 40, 8), torch.randint(0, 4, (32,))), F.cross_entropy)
    assert [f.rule for f in report.findings if f.severity != "info"] == []


@pytest.mark.parametrize(("length", "severity"), [(30, "info"), (6, None)])
def test_a_forgetful_start_is_information_where_memory_is_needed(length, severity):
    torch.manual_seed(0)
    found = finding(doctor.audit(Fused(), tokens(length), F.cross_entropy), "recurrent-init")
    assert (found.severity if found else None) == severity


def test_gated_cells_and_orthogonal_starts_are_not_forgetful():
    torch.manual_seed(0)
    for model in (Fused(nn.LSTM), Fused(nn.GRU), Fused(gain=1.0)):
        assert finding(doctor.audit(model, tokens(30), F.cross_entropy), "recurrent-init") is None


class Scan(nn.Module):
    """A state without a weight matrix: h = a * h + b x."""

    def __init__(self, decay):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head, self.decay = nn.Linear(8, 24), nn.Linear(24, 4), decay

    def forward(self, x):
        state = 0.0
        for step in self.inner(x).unbind(1):
            state = self.decay * state + step
        return self.head(state)


class Deep(nn.Module):
    """Layers in a loop: residual blocks, highways (layers of their own each time), or one layer again and again."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.way, self.head = way, nn.Linear(8, 4)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(12)])

    def forward(self, x):
        x = x[:, 0]
        for layer in self.layers:
            gate = 0.1
            x = x + layer(x) if self.way == "residual" else gate * x + torch.relu(layer(x))
        return self.head(x)


def test_a_state_that_a_loop_updates_without_weights():
    x, y = torch.randn(256, 24, 8), torch.randint(0, 4, (256,))
    model = Scan(0.5)
    report = doctor.audit(model, (x, y), loss=F.cross_entropy)
    rows = time_gradients(report)
    inner = model.inner(x).detach().requires_grad_()
    state = 0.0
    for step in inner.unbind(1):
        state = 0.5 * state + step
    F.cross_entropy(model.head(state), y).backward()
    expected = inner.grad.square().mean(dim=(0, 2)).sqrt().tolist()
    assert rows == pytest.approx(expected, rel=1e-4)
    assert finding(report, "temporal-gradient").severity == "info"
    assert finding(doctor.audit(Scan(0.99), (x, y), loss=F.cross_entropy), "temporal-gradient") is None


@pytest.mark.parametrize(("decay", "severity"), [(0.5, "warning"), (0.97, None)])
def test_a_forgetful_state_is_named_in_a_run_that_does_not_learn(decay, severity):
    torch.manual_seed(1)
    x, y = torch.randn(256, 24, 8), torch.randint(0, 4, (256,))
    model = Scan(decay)
    opt = torch.optim.SGD(model.parameters(), 1e-2)
    with doctor.watch(model, opt) as seen:
        for k in range(60):
            i = torch.arange(32) + 32 * (k % 8)
            opt.zero_grad()
            F.cross_entropy(model(x[i]), y[i]).backward()
            opt.step()
    found = finding(seen.report(), "temporal-gradient")
    assert (found.severity if found is not None else None) == severity


@pytest.mark.parametrize("way", ["residual", "highway"])
def test_a_stack_of_layers_in_a_loop_is_no_recurrence(way):
    report = doctor.audit(Deep(way), (torch.randn(64, 1, 8), torch.randint(0, 4, (64,))), loss=F.cross_entropy)
    assert not any(o.time_gradients for o in report.recording.operations)


# -- a recurrence of the user's own that starts with a memory of nothing --------------------------------------------------------------------
FORGETS = """
import math
import torch
import torch.nn.functional as F
torch.manual_seed(0)


def make(hidden):
    recurrent = {scale} * torch.randn(hidden, hidden)
    weights = {{"w_in": torch.randn(4, hidden) / 2, "w_rec": recurrent}}
    return torch.nn.ParameterDict({{k: torch.nn.Parameter(v) for k, v in weights.items()}})


class Cell(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.p, self.out = make(32), torch.nn.Linear(32, 4)

    def forward(self, x):
        h = x.new_zeros(len(x), 32)
        for x_t in x.unbind(1):
            h = torch.tanh(x_t @ self.p["w_in"] + h @ self.p["w_rec"])
        return self.out(h)


net = Cell()
opt = torch.optim.Adam(net.parameters(), lr=2e-3)
for step in range(60):
    key = torch.randint(0, 4, (32,))
    x = 0.1 * torch.randn(32, 20, 4)
    x[:, {where}] += F.one_hot(key, 4)
    opt.zero_grad()
    F.cross_entropy(net(x), key).backward()
    opt.step()
"""


@pytest.mark.parametrize(("scale", "where", "severity"), [("0.03", 0, "warning"), ("0.1", 0, "info"), ("0.03", -1, "info")])
def test_a_recurrent_matrix_of_the_users_own_that_forgets_is_named_where_it_is_drawn(tmp_path, scale, where, severity):
    """A radius of 0.56 is that of torch's default; what is asked at once needs no memory."""
    path = tmp_path / "train.py"
    path.write_text(FORGETS.format(scale=scale, where=where))
    report = examine(run_script(str(path), None, []).recording, str(path)).report
    found = next(f for f in report.findings if f.rule == "recurrent-init")
    line = path.read_text().splitlines()[found.location.line - 1]
    assert found.severity == severity and line.strip() == f"recurrent = {scale} * torch.randn(hidden, hidden)"
    if severity == "warning":
        assert report.findings[0] is found
        (_, fix), *_ = planned(report, str(path), unsafe=True)
        assert [e.text for e in fix.edits] == ["torch.nn.init.orthogonal_(torch.randn(hidden, hidden))"]


@pytest.mark.parametrize("matrix", [torch.randn(300, 300, generator=torch.Generator().manual_seed(0)) / 300**0.5, torch.zeros(260, 260),
                                    torch.linalg.qr(torch.randn(280, 280, generator=torch.Generator().manual_seed(0)))[0], 0.01 * torch.ones(257, 257)])
def test_the_radius_of_a_large_matrix_is_that_of_its_eigenvalues(matrix):
    assert _radius_by_powers(matrix) == pytest.approx(torch.linalg.eigvals(matrix.double()).abs().max().item(), rel=6e-3, abs=1e-6)
