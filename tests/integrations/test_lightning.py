"""The callback in real Trainers."""
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pl = pytest.importorskip("pytorch_lightning")
from pytorch_lightning.demos.boring_classes import BoringModel, RandomDataset  # noqa: E402

from gradcheck_doctor.errors import ConfigError  # noqa: E402
from gradcheck_doctor.integrations.lightning import DoctorCallback, UnhealthyTraining  # noqa: E402


class Deep(pl.LightningModule):
    def __init__(self, depth=12):
        super().__init__()
        self.net = nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 2))

    def training_step(self, batch, index):
        return F.cross_entropy(self.net(batch), (batch.sum(1) > 0).long())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(RandomDataset(32, 320), batch_size=16)


def fit(callbacks, model=Deep, **options):
    pl.seed_everything(0, verbose=False)
    chosen = model()
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                         callbacks=callbacks, **{"logger": False, **options})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(chosen)
    return torch.cat([p.detach().flatten() for p in chosen.parameters()]), trainer, [str(w.message) for w in said if "gradcheck_doctor" in str(w.message)]


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}, {"gradient_clip_val": 0.1}, {"fast_dev_run": True}], ids=str)
@pytest.mark.parametrize("model", [Deep, BoringModel])
def test_training_is_bitwise_the_same(model, options):
    assert torch.equal(fit([], model, **options)[0], fit([DoctorCallback()], model, **options)[0])
    assert torch.overrides._len_torch_function_stack() == 0


def test_findings_are_said_once_root_cause_first():
    _, _, said = fit([DoctorCallback()])
    assert len(said) == 1 and "GD102 init-activation-mismatch" in said[0] and "GD301" not in said[0]


class Loud(Deep):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e4)


def test_a_finding_about_no_module_names_none():
    _, _, said = fit([DoctorCallback()], lambda: Loud(1))
    assert "GD701 learning-rate-too-high error: SGD" in "".join(said), said


def test_stop_and_raise():
    assert fit([DoctorCallback(on_finding="stop")])[1].global_step < 20
    with pytest.raises(UnhealthyTraining, match="GD102"):
        fit([DoctorCallback(on_finding="raise")])


def test_report_file_and_state(tmp_path):
    callback = DoctorCallback(output=str(tmp_path / "r.json"))
    fit([callback])
    assert "init-activation-mismatch" in (tmp_path / "r.json").read_text()
    again = DoctorCallback()
    again.load_state_dict(callback.state_dict())
    assert fit([again])[2] == []


def test_unknown_option_values_are_refused():
    with pytest.raises(ConfigError, match="warn, raise or stop"):
        DoctorCallback(on_finding="shout")


def test_the_entry_point_is_off_unless_asked(monkeypatch):
    from gradcheck_doctor.integrations.lightning_factory import callbacks
    assert callbacks() == []
    monkeypatch.setenv("GRADCHECK_DOCTOR_CALLBACK", "1")
    assert len(callbacks()) == 1


def test_a_report_that_has_no_place_does_not_end_a_training(tmp_path):
    (tmp_path / "file").touch()
    _, _, said = fit([DoctorCallback(output=str(tmp_path / "file" / "r.json"))])
    assert "could not write the report" in said[-1]
    fit([DoctorCallback(output=tmp_path / "made" / "r.json")])
    assert (tmp_path / "made" / "r.json").read_text().startswith("{")
    with pytest.raises(ConfigError, match="output must be a path"):
        DoctorCallback(output=3)
