"""A loss may rise because its targets do: another network sets them, run without gradients beside the one that is trained."""
import copy

import pytest
import torch
from torch import nn

from gradcheck_doctor.observe.watch import Monitor
from gradcheck_doctor.rules.flow import signal_ratio
from gradcheck_doctor.rules.optimizer.loss_curve import LossDivergence


def rising(aside, steps=240):
    """A loss that rises fourfold; with `aside` another network runs without gradients on each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    other, metric, optimizer = copy.deepcopy(model), nn.Softmax(dim=1), torch.optim.SGD(model.parameters(), 1e-4)
    with Monitor([model], [optimizer], every=2) as monitor:
        for step in range(steps):
            x = torch.randn(32, 6)
            with torch.no_grad():
                runs = {"target network": other, "the model itself": model, "no parameters": metric}.get(aside)
                targets = runs(x) if runs is not None else torch.zeros(32, 3)
            optimizer.zero_grad()
            ((model(x) - 0.0 * targets[:, :3].sum()).square().mean() * (1 + 5 * step / steps)).backward()
            optimizer.step()
    return monitor.recording()


@pytest.mark.parametrize(("aside", "severity"), [("target network", "info"), ("the model itself", "error"), ("no parameters", "error"), ("nothing", "error")])
def test_a_rising_loss_is_no_divergence_where_another_network_may_move_the_targets(aside, severity):
    recording = rising(aside)
    assert [f.severity for f in LossDivergence().check(recording)] == [severity]
    observed = len(recording.operations[0].observed)
    assert recording.notes["steps_aside"] == (observed if aside == "target network" else 0) and observed > 50


def test_a_network_that_runs_aside_now_and_then_excuses_nothing():
    recording = rising("target network")
    recording.notes["steps_aside"] //= 3
    assert [f.severity for f in LossDivergence().check(recording)] == ["error"]


def test_a_batch_of_one_and_a_single_output_say_nothing_of_what_the_batch_varies():
    """The boundary condition of a differential equation: the network at one point beside the batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with Monitor([model], [optimizer], every=1) as monitor:
        for _ in range(4):
            optimizer.zero_grad()
            (model(torch.randn(32, 1)).square().mean() + (model(torch.zeros(1, 1)) - 1).square().mean()).backward()
            optimizer.step()
    recording = monitor.recording()
    layers = [o for o in recording.operations if o.op == "linear"]
    assert len(layers) == 6 and signal_ratio(recording, layers[0], layers[2]) > 0.01 and signal_ratio(recording, layers[3], layers[5]) is None


@pytest.mark.parametrize(("sign", "loss", "found"), [
    (-1, nn.functional.mse_loss, ["error"]), (1, nn.functional.mse_loss, []), (-1, lambda out, y: nn.functional.mse_loss(out, y, reduction="none").mean(), [])])
def test_a_loss_that_is_raised_by_a_minus_sign(sign, loss, found):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with Monitor([model], [optimizer]) as monitor:
        for _ in range(200):
            value = loss(model(torch.randn(32, 6)), torch.zeros(32, 3))
            optimizer.zero_grad()
            (-value if sign < 0 else value).backward()
            optimizer.step()
    findings = list(LossDivergence().check(monitor.recording()))
    assert [f.severity for f in findings] == found
    if found:
        assert "mse_loss goes into backward with a minus sign" in findings[0].message and findings[0].fixes[0].prescription.treatment == "minimise-loss"
        assert findings[0].location.line == findings[0].fixes[0].prescription.span.line


def test_an_input_that_is_made_to_raise_the_loss_is_no_fault_of_the_model():
    """An adversarial example: only it is trained."""
    torch.manual_seed(0)
    model, change = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)), torch.zeros(1, 6, requires_grad=True)
    optimizer, x = torch.optim.Adam([change], 1e-1), torch.randn(32, 6)
    with Monitor([], [optimizer]) as monitor:
        for _ in range(200):
            optimizer.zero_grad()
            (-nn.functional.mse_loss(model(x + change), torch.zeros(32, 3))).backward()
            optimizer.step()
    recording = monitor.recording()
    assert recording.losses[0].op == "mse_loss" and not list(LossDivergence().check(recording))
