"""Data that a pretrained model does not know, seen at its first batch normalisation."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradcheck_doctor as doctor


def pretrained():
    """A model that has seen 100 standardised batches, with weights of no initial distribution."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(8, 3, 3, 3) ** 3)
        for _ in range(100):
            model(images())
    return model


def images(count=16):
    return torch.randn(count, 3, 8, 8)


def raw(count=16):
    """The same pictures in [0, 255]."""
    return (images(count) * 58.0 + 118.0).clamp(0, 255)


def tune(model, data, steps=12):
    """Train the head on noise labels, so nothing is learned."""
    opt = torch.optim.SGD(model[5].parameters(), 1e-4)
    with doctor.watch(model, opt, every=1) as seen:
        for _ in range(steps):
            x = data()
            opt.zero_grad()
            F.cross_entropy(model(x), torch.randint(0, 4, (len(x),))).backward()
            opt.step()
    return seen.report()


def the(report):
    return next((f for f in report.findings if f.rule == "input-statistics"), None)


def test_raw_pixels_for_frozen_statistics():
    found = the(tune(pretrained().eval(), raw))
    assert found.severity == "warning" and found.module == "1" and found.evidence["std_factor"] > 30


def test_a_batch_of_its_own_kind_is_quiet_in_both_modes():
    for model in (pretrained(), pretrained().eval()):
        assert the(tune(model, images)) is None


def test_training_mode_finds_the_same_but_adapts():
    """The running statistics before the first batch are recovered exactly from those after it."""
    torch.manual_seed(1)
    still, moving, batch = pretrained().eval(), pretrained(), raw()
    evidence = [the(tune(copy.deepcopy(model), lambda: batch)).evidence for model in (still, moving)]
    assert evidence[1]["shift"] == pytest.approx(evidence[0]["shift"], rel=1e-2)
    assert the(tune(moving, lambda: batch)).severity == "info"


@pytest.mark.parametrize("change", [lambda m: m[1].reset_running_stats(), lambda m: m.__setitem__(0, nn.Conv2d(3, 8, 3))],
                         ids=["new statistics", "new layer in front"])
def test_what_is_new_is_not_judged(change):
    model = pretrained()
    change(model)
    assert the(tune(model.eval(), raw)) is None


def test_few_samples_say_nothing():
    assert the(tune(pretrained().eval(), lambda: raw(4))) is None


def test_example_inputs_are_information_in_an_audit():
    found = the(doctor.audit(pretrained().eval(), (raw(), torch.randint(0, 4, (16,))), F.cross_entropy))
    assert found.severity == "info"


def test_the_model_is_not_changed_by_looking():
    torch.manual_seed(3)
    model, other, batch = pretrained(), pretrained(), images()
    doctor.audit(model, batch)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
