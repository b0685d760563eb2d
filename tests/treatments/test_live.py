"""Cures on the live model: applied, measured, taken back bit for bit; trained weights are kept."""
import copy
from dataclasses import replace

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


def test_a_model_trained_between_its_report_and_the_treatment_is_kept():
    """A few steps that nothing else tells; the report of another model of the class is no evidence."""
    torch.manual_seed(0)
    model, batch = mlp(nn.ReLU), classes()
    report = doctor.audit(model, batch, loss=CROSS)
    train(model, batch, steps=5, lr=1e-2)
    before = snapshot(model)
    done = doctor.treat(model, report)
    same(before, snapshot(model))
    assert any("has changed since the report was made" in r.reason for r in done.refusals)
    assert doctor.treat(mlp(nn.ReLU), report)
    assert doctor.treat(model, doctor.audit(model, batch, loss=CROSS), only=("initialise",), retrain=True)


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
    model, batch = mlp(nn.ReLU, depth=7, width=16), classes(16)
    report = doctor.audit(model, batch, CROSS, steps=40)
    assert model[0].weight._version > 24
    assert [c.treatment for c in doctor.treat(model, report, only=("initialise-he-normal",))] == ["initialise-he-normal"]


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
    first.changes += doctor.treat(model, doctor.audit(model, batch, CROSS), only=("initialise",))
    first[1].siblings = first.changes
    with pytest.raises(TreatmentRefused, match="first: it changed the same place"):
        first[0].undo()
    first.undo()
    assert all(c.undone for c in first)


# -- structure -----------------------------------------------------------------------------------------------------------------------------
def cured(model, batch, treatment, rule=None, name=None, *, loss=CROSS, optimizer=None, **options):
    """Apply one treatment with proof, undo it, check that all is back, apply it again; (change, figure before, figure after)."""
    optimizer = optimizer or torch.optim.Adam(model.parameters())
    before = snapshot(model, optimizer)
    done = doctor.treat(model, None, optimizer, batch=batch, loss=loss, only=(treatment,), unsafe=True, **options)
    assert [c.treatment for c in done][:1] == [treatment], str(done)
    done.undo()
    same(before, snapshot(model, optimizer))
    done = doctor.treat(model, None, optimizer, batch=batch, loss=loss, only=(treatment,), unsafe=True, **options)
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert all(id(p) in held for p in model.parameters()) and len(held) == len(list(model.parameters()))
    if rule is None:
        return done[0], None, None
    return done[0], evidence(done.before, rule, name), evidence(done.after, rule, name)


def trains(model, batch, loss=CROSS, steps=60, lr=1e-2):
    model = copy.deepcopy(model)
    first = loss(model(batch[0]), batch[1]).item()
    train(model, batch, loss, steps, torch.optim.Adam, lr=lr)
    return loss(model(batch[0]), batch[1]).item() / first


def test_sigmoid_stack_becomes_relu_with_he():
    model, batch = mlp(nn.Sigmoid), classes()
    assert trains(model, batch) > 0.9
    change, before, after = cured(model, batch, "replace-activation-he-normal", "GD203", "gradient_ratio")
    assert before < 1e-10 and after is None and change.verified.status == "improved"
    assert change.verified.after["gradient_decades"] < 2 < 10 < change.verified.before["gradient_decades"]
    assert isinstance(model[1], nn.ReLU) and not any(isinstance(m, nn.Sigmoid) for m in model.modules()) and trains(model, batch) < 0.5


def test_norms_are_inserted_between_sigmoid_layers_and_other_names_stay():
    model, batch = mlp(nn.Sigmoid), classes()
    keys = set(model.state_dict())
    change, before, after = cured(model, batch, "insert-norm", "GD301", "gradient_ratio")
    assert before < 1e-10 and after is None
    assert keys < set(model.state_dict()) and "0_norm.running_mean" in model.state_dict() and not change.renamed
    assert [type(m).__name__ for m in list(model)[:4]] == ["Linear", "BatchNorm1d", "Sigmoid", "Linear"] and not isinstance(model[-2], nn.BatchNorm1d)


class Attributes(nn.Module):
    """Layers as attributes, activations as functions."""

    def __init__(self, depth=12):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return self.head(x)


def test_outside_a_sequential_the_layer_is_wrapped_and_the_new_names_are_said():
    model, batch = Attributes(), classes()
    change, before, after = cured(model, batch, "insert-norm", "GD301", "gradient_ratio")
    assert before < 1e-3 and after is None
    assert change.renamed["layers.0.weight"] == "layers.0.layer.weight" and "layers.0.weight -> layers.0.layer.weight" in change.notes[0]
    assert "head.weight" in model.state_dict()


def test_an_activation_called_as_a_function_is_refused_with_the_place():
    model, batch = Attributes(), classes()
    report = doctor.audit(model, batch, CROSS)
    done = doctor.treat(model, report, unsafe=True, only=("replace-activation",))
    assert not done and "called as a function in forward" in done.refusals[0].reason and "test_live.py" in done.refusals[0].reason


def test_a_treatment_after_a_wrap_still_finds_its_layer():
    """Paths of the report keep their meaning when an earlier change has moved the module."""
    model, batch = Attributes(), classes()
    report = doctor.audit(model, batch, CROSS)
    before = snapshot(model)
    done = doctor.treat(model, report, unsafe=True, only=("insert-norm", "initialise-lecun-normal"))
    assert {c.treatment for c in done} == {"insert-norm", "initialise-lecun-normal"}
    assert isinstance(model.layers[0], nn.Sequential) and model.layers[0].layer.weight.std().item() == pytest.approx(32**-0.5, rel=0.15)
    done.undo()
    same(before, snapshot(model))


@pytest.mark.parametrize(("layer", "shape", "expected"), [
    (nn.Linear(4, 8), (16, 8), "BatchNorm1d"), (nn.Linear(4, 8), (4, 8), "LayerNorm"), (nn.Linear(4, 8), (16, 5, 8), "LayerNorm"), (nn.Linear(4, 8), (), "LayerNorm"),
    (nn.Conv1d(4, 8, 3), (16, 8, 5), "BatchNorm1d"), (nn.Conv2d(4, 8, 3), (2, 8, 5, 5), "BatchNorm2d"), (nn.Conv2d(4, 8, 3), (2, 8, 1, 1), "GroupNorm"),
    (nn.Conv3d(4, 8, 3), (2, 8, 5, 5, 5), "BatchNorm3d")])
def test_which_norm_fits(layer, shape, expected):
    from gradcheck_doctor.treatments.live_norm import norm_for
    norm = norm_for(layer, "batch", shape)
    assert type(norm).__name__ == expected
    assert shape == () or norm(torch.randn(shape)).shape == shape


def test_born_dead_units_come_alive():
    model, batch = mlp(nn.ReLU, depth=4), classes(size=1024)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.bias, -30.0)
    before = evidence(doctor.audit(model, batch, CROSS), "GD201", "dead_fraction")
    done = doctor.treat(model, batch=batch, loss=CROSS)
    assert before == 1.0 and evidence(done.after, "GD201", "dead_fraction") is None and done.after.verdict == "healthy"
    assert done[0].treatment == "initialise-zero-bias" and trains(model, batch) < 0.9


def test_dead_units_get_a_slope_and_prelu_enters_the_optimizer():
    from gradcheck_doctor.live import patient_of
    from gradcheck_doctor.records.findings import Prescription
    from gradcheck_doctor.treatments.live_activation import made
    from gradcheck_doctor.treatments.live_plan import carry_out
    model, batch = mlp(nn.ReLU, depth=4), classes()
    decayed, plain = [[p for p in model.parameters() if (p.dim() > 1) is matrix] for matrix in (True, False)]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}])
    before = snapshot(model, optimizer)
    patient = patient_of(model, doctor.audit(model, batch, CROSS), optimizer)
    change = carry_out(patient, None, Prescription("replace-activation", "t", modules=("1", "3"), arguments={"to": "prelu"}))
    assert isinstance(model[1], nn.PReLU) and optimizer.param_groups[1]["params"][-1] is model[3].weight
    model(batch[0]).sum().backward()
    optimizer.step()
    model.zero_grad()
    change.undo()
    assert snapshot(model, optimizer)["optimizer"][0] == before["optimizer"][0] and isinstance(model[1], nn.ReLU) and len(optimizer.state) == 8
    assert made("leaky_relu", 0.2).negative_slope == 0.2


def test_doubled_softmax_goes():
    model, batch = nn.Sequential(*mlp(nn.ReLU, depth=3), nn.Softmax(dim=1)), classes(out=10)
    change, before, after = cured(model, batch, "remove-output-activation", "GD601", "loss", steps=20)
    assert before == "cross_entropy" and after is None and isinstance(model[-1], nn.Identity)
    assert change.verified.after["last_loss"] < change.verified.before["last_loss"]


def test_a_single_unit_softmax_is_not_removed_alone():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1), nn.Softmax(dim=1))
    report = doctor.audit(model, (torch.randn(16, 8), torch.rand(16, 1).round()), nn.functional.binary_cross_entropy)
    done = doctor.treat(model, report, unsafe=True)
    assert not done and any("the loss must change with it" in r.reason for r in done.refusals)


def raw(size=128):
    x, y = classes(size=size)
    return x * torch.linspace(1, 500, 32) + 300, y


def test_input_norm_and_standardisation():
    batch = raw()
    for treatment in ("input-norm", "standardise-input"):
        model = mlp(nn.ReLU, depth=3)
        change, before, after = cured(model, batch, treatment, "GD507", "largest_std")
        assert before > 100 and after is None and change.verified.status == "improved"
        first = model[0](batch[0])
        assert first.mean(0).abs().max() < 1e-3 and first.std(0, unbiased=False).sub(1).abs().max() < 1e-2
    assert "0_standardise.mean" in model.state_dict() and not list(model[0].parameters())
    still = doctor.treat(mlp(nn.ReLU, depth=3), doctor.audit(model, batch, CROSS), only="standardise-input")
    assert "pass batch=" in still.refusals[0].reason


def test_input_norm_for_images():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    batch = torch.randint(0, 256, (32, 3, 8, 8)).float(), torch.randint(4, (32,))
    change, before, after = cured(model, batch, "input-norm", "GD507", "largest_std")
    assert before > 10 and after is None and isinstance(model[0], nn.BatchNorm2d)


def normed():
    return nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def test_redundant_biases_go_and_nothing_else_changes():
    model, batch = normed(), classes()
    train(model, batch, steps=5)                          # trained weights may lose a bias: it had no effect
    optimizer = torch.optim.Adam(model.parameters())
    evaluated = copy.deepcopy(model).eval()(batch[0])
    change, before, after = cured(model, batch, "drop-bias", "GD502", "layers", optimizer=optimizer)
    assert before == 2 and after is None and model[0].bias is None and model[4].bias is None and model[7].bias is not None
    torch.testing.assert_close(copy.deepcopy(model).eval()(batch[0]), evaluated, rtol=1e-4, atol=1e-5)


def test_dropout_moves_behind_the_norm_and_names_stay():
    model, batch = normed(), classes()
    names = set(model.state_dict())
    change, before, after = cured(model, batch, "swap-dropout-norm", "GD504", "p")
    assert before == 0.3 and after is None and set(model.state_dict()) == names
    assert [type(m).__name__ for m in model][3:6] == ["Linear", "BatchNorm1d", "Dropout"]


def test_alpha_dropout_behind_selu():
    model, batch = nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(32, 32), nn.SELU(), nn.Dropout(0.1))], nn.Linear(32, 10)), classes()
    report = doctor.audit(model, batch, CROSS)
    assert "Dropout instead of AlphaDropout follows" in evidence(report, "GD211", "broken")
    before = snapshot(model)
    change, = doctor.treat(model, report, unsafe=True, only=("alpha-dropout",))
    assert isinstance(model[2], nn.AlphaDropout) and model[2].p == 0.1 and change.modules
    assert "Dropout instead of AlphaDropout follows" not in (evidence(doctor.audit(model, batch, CROSS), "GD211", "broken") or ())
    change.undo()
    same(before, snapshot(model))


def test_group_norm_for_a_small_batch_keeps_scale_and_shift():
    model = nn.Sequential(nn.Conv2d(3, 8, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))
    batch = torch.randn(2, 3, 8, 8), torch.randint(4, (2,))
    scale = model[1].weight
    change, before, after = cured(model, batch, "replace-norm-group", "GD503", "values")
    assert before == 2 and after is None and isinstance(model[1], nn.GroupNorm) and model[1].weight is scale


# -- recurrent -----------------------------------------------------------------------------------------------------------------------------
class Recurrent(nn.Module):
    def __init__(self, kind=nn.RNN):
        super().__init__()
        self.rnn, self.head = kind(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def sequences():
    return torch.randn(64, 30, 8), torch.randint(10, (64,))


def test_exploding_rnn_gets_an_orthogonal_recurrence():
    model = Recurrent()
    nn.init.normal_(model.rnn.weight_hh_l0)
    done = doctor.treat(model, batch=sequences(), loss=CROSS)
    assert [c.treatment for c in done] == ["initialise-orthogonal"] and done[0].verified.before["recurrent-init"] > 3
    assert done[0].verified.after["recurrent-init"] == pytest.approx(1.0, abs=1e-3)
    weight = model.rnn.weight_hh_l0.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(32), atol=1e-5, rtol=0)


def test_gates_are_orthogonal_each_and_remember():
    model = Recurrent(nn.LSTM)
    cured(model, sequences(), "initialise-orthogonal")
    for gate in model.rnn.weight_hh_l0.detach().chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(32), atol=1e-5, rtol=0)
    change, _, _ = cured(model, sequences(), "initialise-forget-gate-bias")
    assert change.verified.before["forget-gate-bias"] < 0.1 and change.verified.after["forget-gate-bias"] == 1.0
    assert (model.rnn.bias_ih_l0 + model.rnn.bias_hh_l0)[32:64].eq(1).all() and not (model.rnn.bias_ih_l0 + model.rnn.bias_hh_l0)[:32].eq(1).any()


def test_output_bias_at_the_class_shares_and_at_the_mean_of_the_targets():
    model, (x, y) = mlp(nn.ReLU, depth=2), classes(size=512)
    y = torch.where(torch.rand(512) < 0.9, 0, y)
    loss = CROSS(model(x), y).item()
    cured(model, (x, y), "initialise-class-prior")
    assert CROSS(model(x), y).item() < 0.5 * loss
    far = (x, torch.randn(512, 10) + 100)
    model = mlp(nn.ReLU, depth=3)
    report = doctor.audit(model, far, nn.functional.mse_loss)
    done = doctor.treat(model, report, unsafe=True, only=("target-bias",))
    assert len(done) == 1 and model[-1].bias.mean().item() == pytest.approx(100, abs=0.1)
    assert evidence(report, "GD604", "initial_loss") > 1000 and nn.functional.mse_loss(model(x), far[1]).item() < 10


# -- optimizer -----------------------------------------------------------------------------------------------------------------------------
def carry(model, optimizer, treatment, modules=(), **arguments):
    from gradcheck_doctor.live import patient_of
    from gradcheck_doctor.records.findings import Prescription, ReportData
    from gradcheck_doctor.treatments.live_plan import carry_out
    return carry_out(patient_of(model, ReportData("m", "run", {}, {}), optimizer), None, Prescription(treatment, "t", modules=modules, arguments=arguments))


def test_rate_epsilon_and_decay_change_in_every_group_and_come_back():
    model = mlp(nn.ReLU, depth=3)
    optimizer = torch.optim.AdamW([{"params": model[0].parameters(), "lr": 1.0}, {"params": model[2].parameters(), "lr": 0.1, "eps": 1e-8}], eps=0.1, weight_decay=10.0)
    torch.optim.lr_scheduler.StepLR(optimizer, 5)
    before = snapshot(model, optimizer)
    changes = [carry(model, optimizer, "learning-rate", lr=0.01, old=1.0), carry(model, optimizer, "adam-epsilon", eps=1e-8),
               carry(model, optimizer, "weight-decay", weight_decay=1.0)]
    assert [(g["lr"], g["initial_lr"], g["eps"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.01, 0.01, 1e-8, 1.0), (pytest.approx(0.001),) * 2 + (1e-8, 1.0)]
    heavy = torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[2].parameters(), "momentum": 0.5}], 0.1, momentum=0.999)
    carry(model, heavy, "momentum", momentum=0.9)
    assert [g["momentum"] for g in heavy.param_groups] == [0.9, 0.5]
    for change in reversed(changes):
        change.undo()
    same(before, snapshot(model, optimizer))
    with pytest.raises(TreatmentRefused, match="pass optimizer="):
        carry(model, None, "learning-rate", lr=0.1)


def test_forgotten_parameters_are_added_and_then_learn():
    model, batch = mlp(nn.ReLU, depth=3), classes()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)
    before = snapshot(model, optimizer)
    change = carry(model, optimizer, "add-parameters", ("2", "4"))
    held = model[4].weight.detach().clone()
    CROSS(model(batch[0]), batch[1]).backward()
    optimizer.step()
    assert not torch.equal(held, model[4].weight)
    change.undo()
    assert len(optimizer.param_groups) == 1 and optimizer_content(optimizer)[0] == before["optimizer"][0] and len(optimizer.state) == 2
    with pytest.raises(TreatmentRefused, match="holds all of them"):
        carry(model, torch.optim.SGD(model.parameters()), "add-parameters")


def test_gradients_are_clipped_in_front_of_each_step_until_undone():
    model, batch = mlp(nn.ReLU, depth=3), classes()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    change = carry(model, optimizer, "clip-by-norm", max_norm=0.5)

    def step():
        optimizer.zero_grad()
        (1e4 * CROSS(model(batch[0]), batch[1])).backward()
        optimizer.step()
        return torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()

    assert step() == pytest.approx(0.5, rel=1e-3)
    change.undo()
    assert step() > 1


def test_freezing_keeps_the_rest_trainable():
    model = mlp(nn.ReLU, depth=3)
    before = snapshot(model)
    change = carry(model, None, "freeze-backbone", ("0", "2"))
    assert [p.requires_grad for p in model.parameters()] == [False] * 4 + [True] * 2
    change.undo()
    same(before, snapshot(model))
    with pytest.raises(TreatmentRefused, match="nothing would be left"):
        carry(model, None, "freeze", ("0", "2", "4"))


# -- folding -------------------------------------------------------------------------------------------------------------------------------
class Block(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv, self.bn, self.skip = conv, nn.BatchNorm2d(conv.out_channels), nn.BatchNorm2d(conv.in_channels)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x))) + self.skip(x).mean()


class Branching(Block):
    def forward(self, x):
        return super().forward(x) if x.sum() > -1e9 else x     # not traceable: neighbours and recordings only


@pytest.mark.parametrize("conv", [nn.Conv2d(4, 8, 3, groups=2, bias=False), nn.Conv2d(4, 8, 3), nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2)])
def test_folding_is_exact_to_rounding_and_comes_back(conv):
    from gradcheck_doctor.treatments import fold_norm
    model = Block(conv)
    x = torch.randn(16, 4, 9, 9)
    with torch.no_grad():
        for _ in range(20):
            model(3 * x + 1)
        for p in model.bn.parameters():
            p.uniform_(0.5, 2)
    with pytest.raises(TreatmentRefused, match="model.eval"):
        fold_norm(model)
    model.eval()
    before, output = snapshot(model), model(x)
    optimizer = torch.optim.SGD(model.parameters())
    change = fold_norm(model, optimizer)
    torch.testing.assert_close(model(x), output, rtol=1e-5, atol=1e-5)
    assert isinstance(model.bn, nn.Identity) and isinstance(model.skip, nn.BatchNorm2d) and change.modules == ("bn",)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    change.undo()
    same(before, snapshot(model))


def test_folding_without_a_trace():
    model = nn.Sequential(Branching(nn.Conv2d(4, 4, 3, padding=1)), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval()
    nn.init.uniform_(model[2].running_mean)
    x = torch.randn(2, 4, 8, 8)
    output = model(x)
    from gradcheck_doctor.treatments import fold_norm
    assert fold_norm(model).modules == ("2",)              # inside Branching the data flow is not known: left alone
    torch.testing.assert_close(model(x), output, rtol=1e-5, atol=1e-5)


def test_folding_by_name():
    model = normed().eval()
    x, y = classes()
    done = doctor.treat(model, doctor.audit(model, (x, y), CROSS), only=("fold-norm",))
    assert len(done) == 1 and sum(isinstance(m, nn.BatchNorm1d) for m in model) == 0


# -- measured, and refusals ----------------------------------------------------------------------------------------------------------------
def test_what_does_not_help_is_undone_and_says_so():
    """One layer of twenty drawn anew leaves the finding where it was."""
    model, batch = mlp(nn.ReLU), classes()
    optimizer = torch.optim.Adam(model.parameters())
    report = doctor.audit(model, batch, CROSS)
    sick = report.findings[0]
    poor = replace(sick.fixes[0], prescription=replace(sick.fixes[0].prescription, modules=("0",)))
    before = snapshot(model, optimizer)
    done = doctor.treat(model, replace(report.data, findings=(replace(sick, fixes=(poor,)),)), optimizer, batch=batch, loss=CROSS)
    assert not done and done.refusals[0].reason == "it did not help and was undone: init-activation-mismatch is still found"
    figures = done.refusals[0].verified
    assert figures.status == "no-effect" and figures.before["gradient_decades"] == pytest.approx(figures.after["gradient_decades"], abs=1)
    same(before, snapshot(model, optimizer))


def test_a_change_that_breaks_the_forward_is_undone():
    class Indexed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 10)

        def forward(self, x):
            return self.second(torch.sigmoid(self.first(x) * self.first.weight.norm()))

    model, batch = Indexed(), classes()
    before = snapshot(model)
    done = doctor.treat(model, batch=batch, loss=CROSS, only=("insert-norm",), unsafe=True)
    assert not done and "does not run any more" in done.refusals[0].reason
    same(before, snapshot(model))


def test_unsafe_and_unknown_treatments_say_so():
    model, batch = mlp(nn.Sigmoid), classes()
    report = doctor.audit(model, batch, CROSS)
    done = doctor.treat(model, report)
    assert not done and all("unsafe=True allows it" in r.reason for r in done.refusals) and "not done: " in str(done)
    with pytest.raises(ConfigError, match="no treatment 'homeopathy'"):
        doctor.treat(model, report, only=("homeopathy",))
    with pytest.raises(ConfigError, match="needs a report"):
        doctor.treat(model)


def test_wrapped_models_keep_their_structure():
    model, batch = mlp(nn.Sigmoid), classes()
    compiled = torch.compile(model, backend="eager")
    done = doctor.treat(compiled, doctor.audit(compiled, batch, CROSS), unsafe=True, only=("insert-norm",))
    assert not done and all("wrapped" in r.reason or "no hidden layer" in r.reason for r in done.refusals)


def test_a_report_read_from_a_file_is_enough_for_initialisation():
    from gradcheck_doctor.records.codec import from_json
    model, batch = mlp(nn.ReLU), classes()
    stored = from_json(doctor.audit(model, batch, CROSS).to_json())
    assert [c.treatment for c in doctor.treat(model, stored)] == ["initialise-he-normal"]
    assert doctor.audit(model, batch, CROSS).verdict == "healthy"


def test_a_healthy_model_is_left_alone():
    model, batch = mlp(nn.ReLU, depth=3), classes()
    before = snapshot(model)
    done = doctor.treat(model, batch=batch, loss=CROSS, unsafe=True)
    assert not done and str(done) == "nothing to treat" and len(done) == 0
    same(before, snapshot(model))


def test_weights_that_their_parent_uses_directly_are_not_wrapped():
    """nn.MultiheadAttention reads out_proj.weight; a Sequential in its place has none."""
    model = nn.TransformerEncoderLayer(32, 4, dim_feedforward=64, batch_first=True)
    x = torch.randn(4, 6, 32)
    done = doctor.treat(model, doctor.audit(model, x), only=("insert-norm",), unsafe=True)
    assert len(done) == 1 and isinstance(model.self_attn.out_proj, nn.Linear)
    assert model(x).shape == x.shape


def test_relu6_is_a_relu_although_torch_calls_it_hardtanh():
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU6(), nn.Linear(16, 2))
    change, = doctor.treat(model, doctor.audit(model, torch.randn(32, 16)), only=("initialise",))
    assert "He (kaiming) normal for relu6" in change.title


def test_a_wrapper_for_several_processes_is_refused():
    model = type("DistributedDataParallel", (nn.Sequential,), {})(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="before it is wrapped"):
        doctor.treat(model, doctor.audit(nn.Linear(2, 2), torch.randn(8, 2)))


def test_a_pack_may_bring_a_live_form(monkeypatch):
    from gradcheck_doctor.treatments import plan

    def planner(context, finding, prescription):
        return []

    def live(patient, finding, prescription, journal):
        weight = patient.module(prescription.modules[0]).weight
        journal.values(weight)
        with torch.no_grad():
            weight.mul_(2)
        return "doubled a weight"

    planner.live = live
    monkeypatch.setattr(plan, "planners", lambda: {"double": planner})
    model = mlp(nn.ReLU, depth=2)
    before = snapshot(model)
    change = carry(model, None, "double", ("0",))
    assert change.title == "Doubled a weight" and torch.equal(model[0].weight, 2 * before["values"]["0.weight"])
    change.undo()
    same(before, snapshot(model))
    with pytest.raises(TreatmentRefused, match="no live form"):
        carry(model, None, "halve", ("0",))


def test_running_statistics_are_made_to_follow_and_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16, momentum=0.001), nn.ReLU(), nn.Linear(16, 4))
    model[0].weight.data *= 4
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with doctor.watch(model, optimizer) as seen:
        for _ in range(220):
            optimizer.zero_grad()
            CROSS(model(torch.randn(32, 12)), torch.randint(4, (32,))).backward()
            optimizer.step()
    done = doctor.treat(model, seen.report(), optimizer, unsafe=True, only="batchnorm-momentum")
    assert [c.treatment for c in done] == ["batchnorm-momentum"] and model[1].momentum == 0.1
    done.undo()
    assert model[1].momentum == 0.001
