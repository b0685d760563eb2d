"""Clips outside of backward and step, clips of scaled gradients, and steps that a GradScaler leaves out."""
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradcheck_doctor as doctor
from gradcheck_doctor.observe.scaling import ScalerSteps


def train(place, *, steps=12, clip=nn.utils.clip_grad_norm_, threshold=0.1, zero=lambda o: o.zero_grad(), every=1):
    """Train with the clip at one place of the loop: "early", "right", "late", "both" or "inside accumulation"."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    opt = torch.optim.SGD(model.parameters(), 0.1)
    with doctor.watch(model, opt, every=every) as seen:
        for _ in range(steps):
            x = torch.randn(32, 8)
            zero(opt)
            if place in ("early", "both"):
                clip(model.parameters(), threshold)
            F.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
            if place in ("right", "both"):
                clip(model.parameters(), threshold)
            opt.step()
            if place == "late":
                clip(model.parameters(), threshold)
    return seen.report()


def the(report, rule):
    return [f for f in report.findings if f.rule == rule]


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize(("place", "said"), [("early", "before backward"), ("late", "after step")])
def test_a_clip_without_effect_is_found_where_it_stands(place, said, set_to_none):
    report = train(place, zero=lambda o: o.zero_grad(set_to_none=set_to_none))
    found, = the(report, "misplaced-clip")
    assert (found.severity, found.evidence["misplaced"]) == ("error", said)
    assert "clip(model.parameters(), threshold)" in Path(found.location.file).read_text().splitlines()[found.location.line - 1]
    assert report.recording.events_of("clip_norm") == ()


@pytest.mark.parametrize(("turns", "found"), [(False, ["error"]), (True, [])])
def test_two_optimizers_behind_one_backward_do_not_take_turns(turns, found):
    torch.manual_seed(0)
    body, head = nn.Linear(8, 16), nn.Linear(16, 3)
    opts = [torch.optim.SGD(part.parameters(), 0.1) for part in (body, head)]
    with doctor.watch([body, head], opts, every=1) as seen:
        for _ in range(12):
            x = torch.randn(32, 8)
            for opt in opts:
                opt.zero_grad()
                if turns or opt is opts[0]:
                    F.cross_entropy(head(body(x)), x[:, :3].argmax(1)).backward()
                if turns:
                    opt.step()
            if not turns:
                opts[0].step()
                opts[1].step()
            nn.utils.clip_grad_norm_([*body.parameters(), *head.parameters()], 0.1)
    assert [f.severity for f in the(seen.report(), "misplaced-clip")] == found


@pytest.mark.parametrize("clip", [nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_])
def test_a_clip_in_its_place_is_quiet(clip):
    assert the(train("right", clip=clip), "misplaced-clip") == []


def test_a_second_clip_in_the_right_place_makes_it_harmless():
    assert the(train("both"), "misplaced-clip") == []


def test_measuring_the_norm_after_the_step_is_no_clipping():
    assert the(train("late", threshold=1e9), "misplaced-clip") == []


def test_a_run_that_learns_without_its_clip_has_a_warning():
    report = train("early", steps=300, every="auto")
    assert [f.severity for f in the(report, "misplaced-clip")] == ["warning"]


def test_two_players_that_take_turns_are_not_judged():
    """The critic's step comes before the clip of the generator's gradients, which were made before it."""
    torch.manual_seed(0)
    one, two = nn.Linear(4, 4), nn.Linear(4, 1)
    first, second = torch.optim.SGD(one.parameters(), 0.1), torch.optim.SGD(two.parameters(), 0.1)
    with doctor.watch([one, two], [first, second], every=1) as seen:
        for _ in range(8):
            two(one(torch.randn(8, 4))).square().mean().backward()
            first.step()
            nn.utils.clip_grad_norm_(two.parameters(), 0.1)
            second.step()
            first.zero_grad()
            second.zero_grad()
    assert the(seen.report(), "misplaced-clip") == []


def scaled(unscale, threshold=1.0, scale=65536.0):
    torch.manual_seed(0)
    model = nn.Linear(8, 3)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    with doctor.watch(model, opt, every=1) as seen:
        for _ in range(8):
            x = torch.randn(32, 8)
            opt.zero_grad()
            scaler.scale(F.cross_entropy(model(x), x[:, :3].argmax(1))).backward()
            unscale(scaler, opt, model)
            nn.utils.clip_grad_norm_(model.parameters(), threshold)
            scaler.step(opt)
            scaler.update()
    return seen.report()


def by_hand(scaler, opt, model):
    for p in model.parameters():
        p.grad /= scaler.get_scale()
    scaler.scale(torch.ones(()))


def test_a_clip_of_scaled_gradients():
    found, = the(scaled(lambda *_: None), "misplaced-clip")
    assert found.severity == "error" and found.evidence["scale"] == 65536
    assert found.fixes[0].prescription.treatment == "unscale"


@pytest.mark.parametrize("options", [{"unscale": lambda s, o, m: s.unscale_(o)}, {"unscale": by_hand}, {"unscale": lambda *_: None, "threshold": 65536.0},
                                     {"unscale": lambda *_: None, "scale": 1.0}], ids=["unscale_", "by hand", "threshold scaled too", "no scale"])
def test_unscaled_gradients_are_quiet(options):
    assert the(scaled(**options), "misplaced-clip") == []


# -- steps left out ---------------------------------------------------------------------------------------------------------------------------
def skipping(bad, steps):
    """A run whose gradient is infinite on the steps that `bad` says; the slow backoff keeps the scale from sinking to 0."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    opt = torch.optim.SGD(model.parameters(), 1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0, backoff_factor=0.9)
    with doctor.watch(model, opt, every=50) as seen:
        for step in range(steps):
            opt.zero_grad()
            loss = (model(torch.ones(2, 4)) - torch.randn(2, 1)).square().mean() * (float("inf") if bad(step) else 1.0)
            scaler.scale(loss).backward()
            scaler.step(opt)
            scaler.update()
    return seen.report()


@pytest.mark.parametrize(("bad", "steps", "severity", "figures"), [
    (lambda s: s % 4 == 3, 300, "warning", (100, 25)),
    (lambda s: s % 5 > 1, 300, "error", (100, 60)),
    (lambda s: True, 60, "error", (60, 60))], ids=["a quarter", "most", "all"])
def test_steps_left_out_are_counted_exactly(bad, steps, severity, figures):
    found, = the(skipping(bad, steps), "scaler-skipping")
    assert (found.severity, found.evidence["asked"], found.evidence["skipped"]) == (severity, *figures)
    assert "scaler.step(opt)" in Path(found.location.file).read_text().splitlines()[found.location.line - 1]


@pytest.mark.parametrize("bad", [lambda s: s < 20, lambda s: s % 50 == 0], ids=["while the scale settles", "rarely"])
def test_a_settled_scale_is_quiet(bad):
    assert the(skipping(bad, 300), "scaler-skipping") == []


def test_losses_of_steps_that_are_not_observed_are_unscaled():
    """The scale changes between observed steps."""
    curve = skipping(lambda s: s % 10 == 5, 300).recording.curve
    assert all(value < 50 for _, value in curve if value < float("inf"))


def test_scaler_is_as_before_after_watching():
    plain = torch.amp.GradScaler.step
    steps = ScalerSteps(lambda: 0, lambda optimizer: True, lambda scale: None)
    steps.attach()
    assert torch.amp.GradScaler.step is not plain
    steps.detach()
    assert torch.amp.GradScaler.step is plain
