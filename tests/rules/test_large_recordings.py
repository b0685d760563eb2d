"""What many rules ask of a recording is computed once: a report on thousands of calls takes no longer than a few hundred times one on tens."""
import torch
from torch import nn

from gradcheck_doctor.observe.watch import Monitor
from gradcheck_doctor.rules import flow
from gradcheck_doctor.rules.engine import diagnose
from gradcheck_doctor.rules.recurrent import cures


def recorded(passes):
    torch.manual_seed(0)
    net = nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(8, 8), nn.Sigmoid())], nn.Linear(8, 2))
    with Monitor([net]) as monitor:
        sum(net(torch.randn(4, 8)).square().mean() for _ in range(passes)).backward()
        return monitor.recording("audit")


def test_runs_of_layers_and_uses_of_weights_are_found_once(monkeypatch):
    asked, looked = [], []
    feeder, uses = flow._feeder, cures._uses
    monkeypatch.setattr(flow, "_feeder", lambda *a: asked.append(a) or feeder(*a))
    monkeypatch.setattr(cures, "_uses", lambda r: looked.append("_uses" not in vars(r) and "__uses" not in vars(r)) or uses(r))
    recording = recorded(60)
    diagnose(recording)
    layers = [o for o in recording.operations if o.op == "linear"]
    assert len(layers) == 60 * 7 and len(asked) == len(layers)
    assert sum(looked) <= 1


def test_what_is_kept_with_a_recording_is_not_shared_with_a_changed_one():
    from dataclasses import replace
    recording = recorded(3)
    assert len(flow.runs(recording)) == 3 and flow.runs(recording) is flow.runs(recording)
    assert flow.runs(replace(recording, operations=recording.operations[:2])) == ()
