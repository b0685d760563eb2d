"""The callback beyond the plain loop: first look, manual optimization, GAN, validation, logging, resume, treat, several processes, CLI."""
import json
import os
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pl = pytest.importorskip("pytorch_lightning")
from pytorch_lightning.demos.boring_classes import ManualOptimBoringModel, RandomDataset  # noqa: E402
from pytorch_lightning.loggers.logger import Logger  # noqa: E402

from gradcheck_doctor.errors import ConfigError  # noqa: E402
from gradcheck_doctor.integrations.lightning import DoctorCallback, UnhealthyTraining  # noqa: E402


def loader(samples=256):
    return torch.utils.data.DataLoader(RandomDataset(32, samples), batch_size=16)


class Classifier(pl.LightningModule):
    def __init__(self, depth=2):
        super().__init__()
        self.net = nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 2))

    def training_step(self, batch, index):
        return F.cross_entropy(self.net(batch), (batch.sum(1) > 0).long())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def train_dataloader(self):
        return loader()


class Deep(Classifier):
    """Twelve ReLU layers under torch's default initialisation: GD102."""

    def __init__(self):
        super().__init__(depth=12)


class Gan(pl.LightningModule):
    """Two networks, two optimizers, manual optimization."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.make, self.judge = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 32)), nn.Sequential(nn.Linear(32, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def training_step(self, batch, index):
        first, second = self.optimizers()
        noise = torch.randn(len(batch), 4)
        self.toggle_optimizer(second)
        loss = F.softplus(-self.judge(batch)).mean() + F.softplus(self.judge(self.make(noise).detach())).mean()
        second.zero_grad()
        self.manual_backward(loss)
        second.step()
        self.untoggle_optimizer(second)
        self.toggle_optimizer(first)
        loss = F.softplus(-self.judge(self.make(noise))).mean()
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        self.untoggle_optimizer(first)

    def configure_optimizers(self):
        return torch.optim.Adam(self.make.parameters(), 1e-3), torch.optim.Adam(self.judge.parameters(), 1e-3)

    def train_dataloader(self):
        return loader()


class Validated(Classifier):
    """Validation runs a layer that training never does, and dropout moves the random state."""

    def __init__(self):
        super().__init__()
        self.probe, self.drop = nn.Linear(32, 2), nn.Dropout(0.5)

    def training_step(self, batch, index):
        return super().training_step(self.drop(batch), index)

    def validation_step(self, batch, index):
        self.log("val", self.probe(batch).mean())

    def val_dataloader(self):
        return loader(64)


class Kept(Logger):
    """A logger that keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.rows = []

    name, version, experiment = "kept", 0, None

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *_, **__):
        return None


def fit(model, callbacks, ckpt_path=None, **options):
    """(weights, trainer, what the doctor said)"""
    pl.seed_everything(0, verbose=False)
    chosen = model if isinstance(model, nn.Module) else model()
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, **options}
    trainer = pl.Trainer(accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks, **options)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(chosen, ckpt_path=ckpt_path)
    return torch.cat([p.detach().flatten() for p in chosen.parameters()]), trainer, [str(w.message) for w in said if "gradcheck_doctor" in str(w.message)]


def compiled():
    return torch.compile(Classifier(), backend="eager")


@pytest.mark.parametrize("model", [Gan, ManualOptimBoringModel, Validated, compiled])
def test_training_is_bitwise_the_same_with_any_kind_of_optimization(model):
    plain, watched = fit(model, []), fit(model, [callback := DoctorCallback()])
    assert torch.equal(plain[0], watched[0])
    assert not [b for b in callback.report().recording.blind_spots if "stopped" in b.reason]


def test_a_gan_has_two_optimizers_and_no_false_alarm():
    callback = DoctorCallback()
    _, trainer, said = fit(Gan, [callback])
    assert said == []
    recording = callback.report().recording
    assert len(recording.optimizers) == 2 and recording.total_steps == trainer.global_step == 32


def test_neither_the_sanity_check_nor_validation_is_judged():
    callback = DoctorCallback()
    fit(Validated, [callback], num_sanity_val_steps=2, val_check_interval=4)
    recording = callback.report().recording
    assert {o.module.split(".")[0] for o in recording.operations} <= {"", "net", "drop"} and recording.total_steps == 16
    assert [b.module for b in recording.blind_spots] == ["probe"]


def test_the_first_look_comes_before_the_first_step():
    _, _, said = fit(Deep, [DoctorCallback()])
    assert said[0].startswith("gradcheck_doctor before the first step:\nGD102")
    with pytest.raises(UnhealthyTraining, match="before the first step"):
        fit(model := Deep(), [DoctorCallback(on_finding="raise")])
    assert model.trainer.global_step == 0
    assert torch.overrides._len_torch_function_stack() == 0


def test_metrics_go_through_the_loggers_under_doctor():
    logger = Kept()
    fit(Classifier, [DoctorCallback()], logger=logger, log_every_n_steps=2)
    rows = [(step, row) for step, row in logger.rows if any(k.startswith("doctor/") for k in row)]
    last = {k: v for _, row in rows for k, v in row.items()}
    assert set(last) == {f"doctor/{k}" for k in ("grad_norm", "gradient_ratio", "worst_layer", "update_ratio", "dead_fraction", "health", "findings")}
    assert last["doctor/health"] == 1.0 and 0 < last["doctor/gradient_ratio"] <= 1.0 and 0.0 <= last["doctor/dead_fraction"] < 1.0
    assert len(rows) >= 6 and [s for s, _ in rows] == sorted(s for s, _ in rows)
    silent = Kept()
    fit(Classifier, [DoctorCallback(log_metrics=False)], logger=silent)
    assert not [row for _, row in silent.rows if any(k.startswith("doctor/") for k in row)]


def test_the_logged_norm_is_the_gradients_own():
    class Norm(pl.Callback):
        seen = []

        def on_before_optimizer_step(self, trainer, module, optimizer):
            self.seen.append(torch.cat([p.grad.flatten() for p in module.parameters()]).norm().item())
    logger = Kept()
    fit(Classifier, [DoctorCallback(), Norm()], logger=logger, log_every_n_steps=1, accumulate_grad_batches=2, gradient_clip_val=0.01)
    logged = [row["doctor/grad_norm"] for _, row in logger.rows if "doctor/grad_norm" in row]
    assert logged == pytest.approx(Norm.seen, rel=1e-5)


def test_a_resumed_run_repeats_no_finding_and_is_not_treated(tmp_path):
    checkpoint = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, filename="first")
    _, _, said = fit(Deep, [DoctorCallback(), checkpoint], enable_checkpointing=True)
    assert "GD102" in "".join(said)
    path = str(tmp_path / "first.ckpt")
    again = fit(Deep, [DoctorCallback()], max_epochs=2, ckpt_path=path)
    assert "GD102" not in "".join(again[2]) and again[1].global_step == 32
    plain = fit(Deep, [], max_epochs=2, ckpt_path=path)
    treated = fit(Deep, [callback := DoctorCallback(treat="safe")], max_epochs=2, ckpt_path=path)
    assert "resumed" in treated[2][0] and callback.treatments is None
    assert torch.equal(plain[0], treated[0])


def test_treat_cures_a_fresh_model_before_its_first_step():
    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            self.std = getattr(self, "std", module.net[2].weight.std().item())
            self.held = {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in module.parameters()}
    watch, callback = Watch(), DoctorCallback(treat="safe")
    _, _, said = fit(Deep, [callback, watch])
    assert watch.std == pytest.approx((2 / 32) ** 0.5, rel=0.1) and watch.held
    assert "initialise-he" in said[0] and len(callback.treatments) >= 1
    assert "GD102" not in "".join(said[1:])


def test_treat_keeps_loaded_weights_and_refuses_manual_optimization():
    """Weights that another run trained are kept, whatever the findings say."""
    trained = Deep()
    fit(trained, [], max_epochs=2)
    fresh = Deep()
    fresh.load_state_dict(trained.state_dict())
    before = {k: v.clone() for k, v in fresh.state_dict().items()}

    class First(pl.Callback):
        same = None

        def on_before_optimizer_step(self, trainer, module, optimizer):
            if self.same is None:
                self.same = all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    first = First()
    assert "loaded weights are never" in fit(fresh, [DoctorCallback(treat="safe"), first])[2][0]
    assert first.same
    assert "manual optimization" in fit(Gan, [DoctorCallback(treat="safe")])[2][0]


def test_the_probe_of_treat_leaves_a_healthy_training_as_it_was():
    assert torch.equal(fit(Classifier, [])[0], fit(Classifier, [DoctorCallback(treat="safe")])[0])


def test_the_entry_points_callback_gives_way_to_the_users_own(monkeypatch):
    from gradcheck_doctor.integrations.lightning_factory import callbacks
    monkeypatch.setenv("GRADCHECK_DOCTOR_CALLBACK", "1")
    made, own = callbacks()[0], DoctorCallback()
    monkeypatch.delenv("GRADCHECK_DOCTOR_CALLBACK")          # where this package is installed, the Trainer would add one more by itself
    _, _, said = fit(Deep, [made, own])
    assert made.monitor is None and own.monitor is not None and "".join(said).count("GD102") == 1


def test_option_values_are_checked():
    for options, words in [({"treat": "yes"}, "off or safe"), ({"every": 0}, "positive number or auto"), ({"every": "often"}, "positive number or auto")]:
        with pytest.raises(ConfigError, match=words):
            DoctorCallback(**options)


def run(folder, script, *arguments, timeout=170):
    (folder / "train.py").write_text(textwrap.dedent(script))
    return subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "train.py", *arguments], cwd=folder, capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


DDP = """
    import json, logging, warnings
    import pytorch_lightning as pl, torch, torch.nn.functional as F
    from torch import nn
    from gradcheck_doctor.lightning import DoctorCallback
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    class Deep(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(*[m for _ in range(12) for m in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 2))
        def training_step(self, batch, index):
            return F.cross_entropy(self.net(batch), (batch.sum(1) > 0).long())
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)
        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.randn(320, 32, generator=torch.Generator().manual_seed(0)), batch_size=16)

    def fit(callbacks):
        pl.seed_everything(0, verbose=False)
        model = Deep()
        trainer = pl.Trainer(strategy="ddp", devices=2, accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                             enable_model_summary=False, callbacks=callbacks)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trainer.fit(model)
        return [p.detach().clone() for p in model.parameters()], trainer, [str(w.message) for w in said if "gradcheck_doctor" in str(w.message)]

    callback = DoctorCallback(output="report.json")
    plain, watched = fit([]), fit([callback])
    stopped = fit([DoctorCallback(on_finding="stop")])
    treated = fit([DoctorCallback(treat="safe")])
    result = {"same": all(torch.equal(a, b) for a, b in zip(plain[0], watched[0])), "said": watched[2], "stopped": stopped[1].global_step,
              "treated": treated[2], "report": str(callback.report())}
    with open(f"rank{watched[1].global_rank}.json", "w") as file:
        json.dump(result, file)
"""


def test_ddp_on_two_processes(tmp_path):
    """Same weights, one report about both ranks, and a stop that all ranks follow."""
    done = run(tmp_path, DDP)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(2))
    assert first["same"] and second["same"]
    assert "GD102" in "".join(first["said"]) and second["said"] == [] and second["report"] == ""
    assert first["stopped"] == second["stopped"] < 10
    assert "each rank would change its own copy" in first["treated"][0]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["probe"]["ranks"] == "2 of 2" and report["blind_spots"] == [] and report["findings"][0]["module"].startswith("net.")


CLI = """
    import logging
    import torch
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.demos.boring_classes import BoringModel
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Slow(BoringModel):
        def configure_optimizers(self):
            return torch.optim.SGD(self.layer.parameters(), lr=1e-3)

    cli = LightningCLI(Slow, seed_everything_default=1)
    callback = next(c for c in cli.trainer.callbacks if type(c).__name__ == "DoctorCallback")
    print("every", callback.every, "steps", callback.monitor.step, "verdict", callback.report().verdict)
"""
CONFIG = """
    trainer:
      accelerator: cpu
      fast_dev_run: 3
      enable_progress_bar: false
      enable_model_summary: false
      callbacks:
        - class_path: gradcheck_doctor.lightning.DoctorCallback
          init_args: {every: 2, on_finding: stop, treat: "off", output: report.md}
"""


def test_the_lightning_package_and_its_cli(tmp_path):
    """The other package's Trainer and LightningCLI, configured from YAML."""
    pytest.importorskip("jsonargparse")
    (tmp_path / "config.yaml").write_text(textwrap.dedent(CONFIG))
    done = run(tmp_path, CLI, "fit", "--config", "config.yaml")
    assert done.returncode == 0, done.stderr
    assert "every 2 steps 3 verdict healthy" in done.stdout
    assert (tmp_path / "report.md").read_text().startswith("#")


def demos():
    from pytorch_lightning.demos.boring_classes import DemoModel
    from pytorch_lightning.demos.transformer import LightningTransformer
    return {"DemoModel": (DemoModel, torch.utils.data.DataLoader(torch.randn(96, 32, generator=torch.Generator().manual_seed(0)), batch_size=8)),
            "LightningTransformer": (lambda: LightningTransformer(61), None)}


@pytest.mark.parametrize("name", ["DemoModel", "LightningTransformer"])
def test_published_examples_are_healthy_and_unchanged(name, tmp_path, monkeypatch):
    """The demos of pytorch_lightning, with a small local text in place of the download."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "wikitext-2.txt").write_text("\n".join(" ".join(f"w{(i * 7 + k * k) % 60}" for k in range(20)) for i in range(40)))
    make, data = demos()[name]

    def train(callbacks):
        pl.seed_everything(1, verbose=False)
        model = make()
        trainer = pl.Trainer(max_epochs=1, accelerator="cpu", limit_train_batches=12, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                             enable_model_summary=False, callbacks=callbacks)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trainer.fit(model, data)
        return torch.cat([p.detach().flatten() for p in model.parameters()]), [str(w.message) for w in said if "gradcheck_doctor" in str(w.message)]
    callback = DoctorCallback()
    (plain, _), (watched, said) = train([]), train([callback])
    assert torch.equal(plain, watched) and said == []
    assert callback.report().verdict == "healthy" and callback.report().recording.blind_spots == ()
