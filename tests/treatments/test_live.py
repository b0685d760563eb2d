"""Cures on the live model: applied, measured, taken back bit for bit; trained weights are kept."""
import copy

import pytest
import torch
from torch import nn

import gradcheck_doctor as doctor
from gradcheck_doctor.errors import ConfigError, TreatmentRefused

CROSS = nn.functional.cross_entropy


def mlp(act, depth=20, width=32, out=10):
    layers = [m for _ in range(depth - 1) for m in (nn.Linear(width, width), act())]
    return nn.Sequential(*layers, nn.Linear(width, out))


def classes(width=32, out=10, size=128):
    return torch.randn(size, width), torch.randint(out, (size,))


def optimizer_content(optimizer):
    if optimizer is None:
        return None
    groups = [{k: [id(p) for p in v] if k == "params" else v for k, v in g.items()} for g in optimizer.param_groups]
    state = {id(p): {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in s.items()} for p, s in optimizer.state.items()}
    return groups, state


def snapshot(model, optimizer=None):
    """Everything that undo must bring back."""
    return {"values": {k: v.clone() for k, v in model.state_dict().items()}, "tree": [(n, id(m)) for n, m in model.named_modules(remove_duplicate=False)],
            "parameters": [(n, id(p), p.requires_grad, p.grad is None) for n, p in model.named_parameters(remove_duplicate=False)],
            "training": [m.training for m in model.modules()], "optimizer": optimizer_content(optimizer), "random": torch.get_rng_state()}


def same(a, b):
    assert list(a["values"]) == list(b["values"])
    for key, value in a["values"].items():
        assert torch.equal(value, b["values"][key]), key
    assert torch.equal(a["random"], b["random"])
    for key in ("tree", "parameters", "training"):
        assert a[key] == b[key], key
    if a["optimizer"] is not None:
        assert a["optimizer"][0] == b["optimizer"][0] and a["optimizer"][1].keys() == b["optimizer"][1].keys()
        for key, state in a["optimizer"][1].items():
            assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(b["optimizer"][1][key][k])) for k, v in state.items())


def evidence(report, rule, name):
    """A figure of the gravest finding of a rule; None where the rule is quiet."""
    return next((f.evidence[name] for f in report.findings if rule in (f.code, f.rule)), None)


def train(model, batch, loss=CROSS, steps=200, make=torch.optim.SGD, **options):
    optimizer = make(model.parameters(), **{"lr": 0.05, **options})
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model(batch[0]), batch[1])
        value.backward()
        optimizer.step()
    return optimizer


# -- initialisation ------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("act", "treatment"), [(nn.ReLU, "initialise-he-normal"), (nn.Tanh, "initialise-glorot-uniform"),
                                                (nn.SELU, "initialise-lecun-normal"), (lambda: nn.LeakyReLU(0.2), "initialise-he-normal")])
def test_twenty_layers_get_what_their_activation_needs(act, treatment):
    model, batch = mlp(act), classes()
    optimizer = torch.optim.Adam(model.parameters())
    report = doctor.audit(model, batch, CROSS)
    assert report.verdict == "sick" and evidence(report, "GD102", "gradient_ratio") < 1e-2
    before = snapshot(model, optimizer)

    done = doctor.treat(model, report, optimizer)

    assert [c.treatment for c in done] == [treatment] and len(done[0].modules) == 19 and not done.refusals
    after = doctor.audit(model, batch, CROSS)
    assert after.verdict == "healthy" and not any(f.severity == "error" for f in after.findings)
    done.undo()
    same(before, snapshot(model, optimizer))
    assert evidence(doctor.audit(model, batch, CROSS), "GD102", "gradient_ratio") == evidence(report, "GD102", "gradient_ratio")


def test_leaky_slope_and_mixed_activations_are_respected_layer_by_layer():
    torch.manual_seed(3)
    model = nn.Sequential(*[m for i in range(16) for m in (nn.Linear(64, 64), nn.ReLU() if i % 4 else nn.LeakyReLU(0.5))], nn.Linear(64, 4))
    report = doctor.audit(model, classes(64, 4), CROSS)
    change, = doctor.treat(model, report)
    assert "He (kaiming) normal for relu" in change.title and "a=0.5 for leaky_relu" in change.title
    assert model[0].weight.std().item() == pytest.approx((2 / 1.25 / 64) ** 0.5, rel=0.06)
    assert model[2].weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.06)
    assert not model[2].bias.any()


def test_normal_0_1_weights_are_drawn_anew_head_included():
    model, batch = mlp(nn.ReLU, depth=5), classes()
    for p in model.parameters():
        nn.init.normal_(p)
    report = doctor.audit(model, batch, CROSS)
    done = doctor.treat(model, report)
    assert done and done[0].rule in ("GD102", "GD103")
    assert CROSS(model(batch[0]), batch[1]).item() < 5 and evidence(report, done[0].rule, "signal_ratio") > 100
    assert not doctor.audit(model, batch, CROSS).has("GD103")


# -- what is kept --------------------------------------------------------------------------------------------------------------------------
def sick_and_trained(act=nn.ReLU, **options):
    """A model that was trained, and the report of its untrained twin: every prescription is there."""
    model, batch = mlp(act, depth=8), classes()
    report = doctor.audit(model, batch, CROSS)
    assert any(f.prescription.treatment == "initialise" for x in report.findings for f in x.fixes)
    return model, report, train(model, batch, **options)


def refused(done, words):
    assert len(done) == 0
    reasons = [r.reason for r in done.refusals if r.treatment.startswith("initialise")]
    assert reasons and all(words in r for r in reasons), reasons


@pytest.mark.parametrize(("options", "words"), [({"momentum": 0.9}, "the optimizer holds state"), ({"make": torch.optim.Adam, "lr": 1e-3}, "the optimizer holds state")])
def test_a_model_whose_optimizer_took_steps_is_refused(options, words):
    model, report, optimizer = sick_and_trained(**options)
    before = snapshot(model, optimizer)
    refused(doctor.treat(model, report, optimizer), words)
    same(before, snapshot(model, optimizer))


def test_a_model_trained_200_steps_is_refused_without_its_optimizer():
    """Even where the gradient vanished and the weights hardly moved: they were written to."""
    model, report, _ = sick_and_trained(lr=1e-5)
    before = snapshot(model)
    refused(doctor.treat(model, report), "written to")
    same(before, snapshot(model))


@pytest.mark.parametrize("lr", [1e-2, 1e-3])
@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh])
def test_trained_values_are_recognised_in_a_copy_that_has_no_history(act, lr):
    """200 steps leave most weights uniform or normal in shape: biases and bounds tell."""
    model, report, _ = sick_and_trained(act, make=torch.optim.Adam, lr=lr)
    done = doctor.treat(copy.deepcopy(model), report)
    assert len(done) == 0 and any("is kept" in r.reason for r in done.refusals)


def test_loaded_weights_are_refused_and_the_new_head_is_not():
    from gradcheck_doctor.observe.provenance import recording_construction
    model, batch = mlp(nn.ReLU, depth=8), classes()
    report = doctor.audit(model, batch, CROSS)
    with recording_construction():
        model.load_state_dict(mlp(nn.ReLU, depth=8).state_dict())
        refused(doctor.treat(model, report), "load_state_dict was called on the model")
    fresh = mlp(nn.ReLU, depth=8)
    with recording_construction():
        fresh.load_state_dict({k: v for k, v in mlp(nn.ReLU, depth=8).state_dict().items() if k.startswith("14.")}, strict=False)
        assert len(doctor.treat(fresh, report)) == 1


def test_frozen_parts_are_refused():
    model, batch = mlp(nn.ReLU, depth=8), classes()
    report = doctor.audit(model, batch, CROSS)
    model[0].requires_grad_(False)
    refused(doctor.treat(model, report), "frozen")


def test_batches_seen_by_batchnorm_tell_training():
    from gradcheck_doctor.treatments.live_guard import trained
    from gradcheck_doctor.treatments.live_patient import Patient
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    assert trained(Patient(model), "0.weight", model[0].weight) == ""
    for _ in range(30):
        model(torch.randn(8, 4))
    assert "30 batches" in trained(Patient(model), "0.weight", model[0].weight)


def test_audits_with_throw_away_steps_do_not_make_a_model_trained():
    model, batch = mlp(nn.ReLU), classes()
    report = doctor.audit(model, batch, CROSS, steps=20)
    assert [c.treatment for c in doctor.treat(model, report) if c.treatment.startswith("init")] == ["initialise-he-normal"]


def test_asked_by_name_trained_weights_are_drawn_anew():
    model, report, optimizer = sick_and_trained(momentum=0.9)
    with pytest.raises(ConfigError, match="say which treatment"):
        doctor.treat(model, report, retrain=True)
    before = snapshot(model, optimizer)
    done = doctor.treat(model, report, optimizer, only=("init-he-normal",), retrain=True)
    assert len(done) == 1 and all(model[i].weight not in optimizer.state for i in (0, 2, 4))
    done.undo()
    same(before, snapshot(model, optimizer))
    assert len(doctor.treat(model, report, optimizer, retrain=done[0].modules)) == 1


def test_shared_and_parametrised_weights_are_refused():
    model, batch = mlp(nn.ReLU, depth=8), classes()
    report = doctor.audit(model, batch, CROSS)
    tied = copy.deepcopy(model)
    tied.extra = nn.Linear(32, 32)
    tied.extra.weight = tied[0].weight
    refused(doctor.treat(tied, report), "shared with extra.weight")
    nn.utils.parametrizations.weight_norm(model[0])
    refused(doctor.treat(model, report), "parametrisation")


def test_a_report_about_another_model_is_refused():
    report = doctor.audit(mlp(nn.ReLU), classes(), CROSS)
    refused(doctor.treat(nn.Sequential(nn.Linear(2, 2)), report), "no module")


def test_a_change_below_another_cannot_be_undone_first():
    model, batch = mlp(nn.ReLU), classes()
    report = doctor.audit(model, batch, CROSS)
    first = doctor.treat(model, report)
    first.changes += doctor.treat(model, report)
    first[1].siblings = first.changes
    with pytest.raises(TreatmentRefused, match="first: it changed the same place"):
        first[0].undo()
    first.undo()
    assert all(c.undone for c in first)
