"""The loss of every step, whether it is read at once or left on its device for a while."""
import pytest
import torch
from torch import nn

from gradcheck_doctor.observe import step_losses
from gradcheck_doctor.observe.watch import Monitor


def curve(steps=100, backwards=1, every=10):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    losses, midway = [], ()
    with Monitor([model], [optimizer], every=every) as monitor:
        for step in range(steps):
            optimizer.zero_grad()
            seen = []
            for _ in range(backwards):
                loss = model(torch.randn(8, 4)).square().mean()
                loss.backward()
                seen.append(loss.item())
                loss.detach().zero_()                               # what the loop does to the tensor afterwards is not seen
            optimizer.step()
            losses.append(sum(seen) / len(seen))
            if step == steps // 2:
                midway = monitor.recording().curve
        recording = monitor.recording()
    assert monitor.observer.failure is None and midway == recording.curve[: len(midway)] and len(midway) == steps // 2 + 1
    return losses, recording


@pytest.mark.parametrize("backwards", [1, 3])
@pytest.mark.parametrize("near", [True, False])
def test_every_loss_is_known(near, backwards, monkeypatch):
    monkeypatch.setattr(step_losses, "at_hand", lambda loss: near)
    losses, recording = curve(backwards=backwards)
    assert [step for step, _ in recording.curve] == list(range(100))
    assert [value for _, value in recording.curve] == pytest.approx(losses, rel=1e-6)
    assert [s.loss for s in recording.steps] == [value for _, value in recording.curve]


def test_losses_on_a_device_are_read_a_few_dozen_at_a_time(monkeypatch):
    reads = []
    whole = step_losses.StepLosses.read
    monkeypatch.setattr(step_losses, "at_hand", lambda loss: False)
    monkeypatch.setattr(step_losses.StepLosses, "read", lambda self: reads.append(len(self._waiting)) or whole(self))
    curve(steps=200, every=10**6)
    read = [n for n in reads if n]
    assert sum(read) == 200 and max(read) == step_losses.WAITING and len(read) <= 8 + 200 // step_losses.WAITING + 3
