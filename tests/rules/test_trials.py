"""Learning one batch by heart, and the difference between training and eval mode: measured on throw-away copies."""
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradcheck_doctor as doctor
from gradcheck_doctor.cli.main import main
from gradcheck_doctor.observe.trials import overfit


def mlp(out=3, **options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(options.get("p", 0.0)), nn.Linear(64, out))


def batch(count=16):
    torch.manual_seed(0)
    return torch.randn(count, 8), torch.randint(0, 3, (count,))


def the(report, rule):
    return next((f for f in report.findings if f.rule == rule), None)


def deaf():
    """The ReLU behind the logits is dead, so the answer is 0 for every input."""
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3), nn.ReLU())
    nn.init.constant_(model[2].bias, -100.0)
    return model


@pytest.mark.parametrize("model", [mlp(), mlp(p=0.5), nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 3))],
                         ids=["plain", "dropout", "batch norm"])
def test_healthy_networks_learn_a_batch_by_heart(model):
    report = doctor.audit(model, batch(), F.cross_entropy, overfit=True)
    assert the(report, "cannot-overfit") is None and report.recording.notes["overfit"]["share"] <= 0.06


def test_a_model_that_is_deaf_to_its_input_cannot():
    report = doctor.audit(deaf(), batch(), F.cross_entropy, overfit=True)
    found = the(report, "cannot-overfit")
    assert found.severity == "error" and found.evidence["rates"] == [1e-3, 1e-2, 1e-4] and found.evidence["share"] > 0.5


def test_it_is_tried_on_request_only():
    assert "overfit" not in doctor.audit(deaf(), batch(), F.cross_entropy).recording.notes


@pytest.mark.parametrize(("loss", "data"), [
    (lambda out, y: F.cross_entropy(out, y, label_smoothing=0.5), batch()),
    (lambda out, y: F.cross_entropy(out, y) + 5.0, batch()),
    (lambda out, y: F.cross_entropy(out, y) + out.square().mean() + 1.0, batch()),
    (F.cross_entropy, (torch.zeros(16, 8), torch.arange(16) % 3)),
    (F.cross_entropy, batch(2048))], ids=["smoothed labels", "floor", "penalty", "equal inputs", "too few weights"])
def test_what_explains_a_high_end_is_information(loss, data):
    torch.manual_seed(0)
    found = the(doctor.audit(mlp(), data, loss, overfit=True), "cannot-overfit")
    assert found.severity == "info"


def test_a_given_optimizer_is_the_only_one_tried():
    found = overfit(mlp(), lambda m: F.cross_entropy(m(batch()[0]), batch()[1]), make_optimizer=lambda m: torch.optim.SGD(m.parameters(), 1e-9), steps=20)
    assert (found["rates"], found["steps"], found["falling"]) == ([], 20, False) and found["share"] == pytest.approx(1.0, abs=1e-3)


def test_the_model_and_the_random_state_come_back():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3))
    before, data = {k: v.clone() for k, v in model.state_dict().items()}, batch()
    state = torch.get_rng_state()
    doctor.audit(model, data, F.cross_entropy, overfit=True, steps=3)
    assert torch.equal(torch.get_rng_state(), state) and all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_command_has_the_option(tmp_path, capsys):
    (tmp_path / "deaf.py").write_text(
        "import torch\nfrom torch import nn\n\nmodel = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3), nn.ReLU())\n"
        "nn.init.constant_(model[2].bias, -100.0)\n"
        "example_inputs = (torch.randn(16, 8), torch.arange(16) % 3)\nloss_fn = nn.CrossEntropyLoss()\n")
    with pytest.raises(SystemExit) as ended:
        main(["audit", str(tmp_path / "deaf.py"), "--overfit", "--select", "GD607", "--format", "json"])
    report = json.loads(capsys.readouterr().out)
    assert ended.value.code == 1 and [f["code"] for f in report["findings"]] == ["GD607"]
    assert report["probe"]["overfit"].startswith("loss ")


# -- training and eval mode -----------------------------------------------------------------------------------------------------------------
def normalised(momentum=0.1, p=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32, momentum=momentum), nn.ReLU(), nn.Dropout(p), nn.Linear(32, 3))


def scaled(factor=30.0):
    x, y = batch(64)
    return factor * x + factor, y


def test_running_statistics_that_do_not_follow():
    found = the(doctor.audit(normalised(momentum=1e-4), scaled(), F.cross_entropy, steps=200), "train-eval-mismatch")
    assert found.severity == "warning" and found.module == "1" and found.evidence["eval_loss"] > 2 * found.evidence["train_loss"]


@pytest.mark.parametrize("options", [{}, {"p": 0.5}, {"momentum": None}], ids=["plain", "dropout", "cumulative average"])
def test_healthy_modes_agree(options):
    report = doctor.audit(normalised(**options), scaled(), F.cross_entropy, steps=200)
    assert the(report, "train-eval-mismatch") is None and "train_eval" in report.recording.notes


def test_few_steps_say_nothing():
    assert the(doctor.audit(normalised(momentum=1e-4), scaled(), F.cross_entropy, steps=50), "train-eval-mismatch") is None


def test_a_model_in_eval_mode_is_not_compared():
    assert "train_eval" not in doctor.audit(normalised().eval(), scaled(), F.cross_entropy, steps=3).recording.notes
