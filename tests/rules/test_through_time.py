"""Gradients through time are measured exactly, vanishing is named in runs that do not learn, and a forgetful start is information."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradcheck_doctor as doctor


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
