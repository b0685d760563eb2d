"""Mistakes in the calls of the Python API are one clear message; nothing seen is not called healthy."""
import pytest
import torch
from torch import nn

import gradcheck_doctor as doctor
from gradcheck_doctor.errors import ConfigError, ProbeError

X = torch.randn(16, 4)


def made():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return model, torch.optim.SGD(model.parameters(), 0.1)


CALLS = {
    "no model": (lambda m, o: doctor.watch(None), ProbeError, "needs a torch.nn.Module"),
    "swapped": (lambda m, o: doctor.watch(o, m), ProbeError, "not SGD"),
    "an optimizer's name": (lambda m, o: doctor.watch(m, "adam"), ConfigError, "second argument of watch is the optimizer"),
    "every word": (lambda m, o: doctor.watch(m, o, every="often"), ConfigError, "positive number or auto, not 'often'"),
    "every 0": (lambda m, o: doctor.watch(m, o, every=0), ConfigError, "positive number or auto, not 0"),
    "every True": (lambda m, o: doctor.watch(m, o, every=True), ConfigError, "not True"),
    "negative steps": (lambda m, o: doctor.audit(m, X, steps=-1), ConfigError, "steps must be 0 or more"),
    "no loss function": (lambda m, o: doctor.audit(m, (X, X), loss=3), ProbeError, "loss must be a function"),
    "unknown rule": (lambda m, o: doctor.audit(m, X, select="GD999"), ConfigError, "no rule 'GD999'"),
    "no report": (lambda m, o: doctor.treat(m, "report.json"), ConfigError, "second argument of treat is a report"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_said(name):
    call, error, said = CALLS[name]
    with pytest.raises(error, match=said):
        call(*made())


def test_digits_are_a_number_and_several_models_may_come_in_any_collection():
    model, optimizer = made()
    other, _ = made()
    assert doctor.watch({"a": model, "b": other}.values(), (optimizer,), every="3").monitor.schedule.every == 3


def test_never_fails_on_request():
    model, _ = made()
    assert doctor.assert_healthy(model, X, fail_on="never").verdict
    with pytest.raises(ValueError, match="or never"):
        doctor.assert_healthy(model, X, fail_on="often")


def test_one_selector_may_stand_alone():
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(16) for layer in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 4))
    assert {f.code for f in doctor.audit(model, torch.randn(64, 32), select="GD301").findings} == {"GD301"}


@pytest.mark.parametrize(("backward", "headline"), [(False, "nothing observed"), (True, "no training observed")])
def test_a_watch_that_saw_no_step_does_not_say_healthy(backward, headline):
    model, optimizer = made()
    with doctor.watch(model, optimizer) as seen:
        for _ in range(20 if backward else 0):
            model(X).square().mean().backward()
    report = seen.report()
    assert report.data.headline == headline
    assert headline in repr(report) and "healthy" not in str(report)
