"""Large models: work and memory grow with the model, not faster, and what has no values is refused without making any."""
import sys
import tracemalloc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradcheck_doctor as doctor
from gradcheck_doctor.errors import ProbeError
from gradcheck_doctor.observe.watch import Monitor
from gradcheck_doctor.session import examine


def chain(modules):
    return nn.Sequential(*(layer for _ in range(modules // 2) for layer in (nn.Linear(2, 2), nn.ReLU())), nn.Linear(2, 2))


def step(model, opt):
    x = torch.randn(8, 2)
    opt.zero_grad()
    F.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
    opt.step()


def calls(act):
    """Python and C functions called: what time is made of, without the noise."""
    count = [0]

    def seen(frame, event, argument):
        count[0] += event in ("call", "c_call")
    sys.setprofile(seen)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count[0]


def costs(modules):
    model = chain(modules)
    opt = torch.optim.SGD(model.parameters(), 0.01)
    monitor = Monitor([model], [opt], every=1)

    def watched():
        with monitor:
            step(model, opt)
            step(model, opt)
    watching = calls(watched)
    kept = []
    recording = calls(lambda: kept.append(monitor.recording()))
    assert len(kept[0].operations) > modules
    return watching, recording, calls(lambda: examine(kept[0], "model"))


def test_work_is_linear_in_the_number_of_modules():
    """Four times the modules: linear work is 4 times as much, quadratic 16; deeper nets have some findings more."""
    small, large = costs(60), costs(240)
    for name, few, many in zip(("watching", "recording", "judging"), small, large):
        assert many <= 8 * few, name


def test_ten_thousand_modules_are_watched_and_named():
    """Most are never called: each of those with parameters is a blind spot, and the ones that ran are measured."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    model.unused = nn.ModuleList(nn.Linear(2, 2) if n % 10 == 0 else nn.Identity() for n in range(10_000))
    model.forward = lambda x: model[2](model[1](model[0](x)))
    opt = torch.optim.SGD([p for layer in (model[0], model[2]) for p in layer.parameters()], 0.01)
    with Monitor([model], [opt], every=1) as monitor:
        step(model, opt)
        tracemalloc.start()
        step(model, opt)
        grown = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    recording = monitor.recording()
    assert len(recording.modules) == 10_005 and len(recording.parameters) == 2_004
    assert len(recording.blind_spots) == 1_000 and recording.total_steps == 2
    assert grown < 1000 * len(recording.parameters), "bytes: a step keeps a row for each parameter and the call counts"


@pytest.fixture
def billion():
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(8192, 8192) for _ in range(16)))
    assert sum(p.numel() for p in model.parameters()) > 1e9
    return model


def test_a_billion_parameters_on_the_meta_device_are_refused_with_what_to_do(billion):
    for call in (lambda: doctor.watch(billion), lambda: doctor.audit(billion, torch.randn(2, 8192, device="meta"))):
        with pytest.raises(ProbeError, match=r"(?s)meta device.*to_empty"):
            call()


def test_a_script_that_trains_on_the_meta_device_is_let_alone(billion):
    """Nothing has a value there; that is said, and nothing raises into the script."""
    opt = torch.optim.SGD(billion.parameters(), 0.1)
    with Monitor(every=1) as monitor:
        for _ in range(2):
            billion(torch.randn(2, 8192, device="meta")).sum().backward()
            opt.step()
    assert "meta" in str(monitor.recording().blind_spots)
