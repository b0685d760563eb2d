"""The callback in real Trainers: small random GPT-2 and BERT, nothing downloaded."""
import json
import warnings

import pytest
import torch
from gradcheck_doctor_transformers import DoctorTrainerCallback, UnhealthyTraining
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import gradcheck_doctor as doctor

STEPS = 12


def gpt2():
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=16, bos_token_id=0, eos_token_id=0)
    tokens = (torch.arange(320)[:, None] * 7 + torch.arange(12)) % 50
    return GPT2LMHeadModel(config), [{"input_ids": row, "labels": row} for row in tokens]


def bert():
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50, max_position_embeddings=16)
    tokens = torch.randint(0, 50, (320, 12))
    return BertForSequenceClassification(config), [{"input_ids": row, "labels": int(row[0] > 25)} for row in tokens]


class Sick(nn.Module):
    """Sixteen ReLU layers with PyTorch's default initialisation: the signal vanishes."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(*[m for _ in range(16) for m in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 2))

    def forward(self, x, labels):
        if torch.isnan(x).any():
            raise RuntimeError("bad batch")
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def sick(bad=None):
    x = torch.randn(320, 32)
    if bad is not None:
        x[bad] = float("nan")
    return Sick(), [{"x": row, "labels": int(row.sum() > 0)} for row in x]


def trainer(folder, build, callbacks=(), **options):
    torch.manual_seed(0)
    model, data = build()
    given = {"max_steps": STEPS, "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True,
             "disable_tqdm": True, "learning_rate": 1e-3, **options}
    return Trainer(model=model, args=TrainingArguments(output_dir=str(folder), **given), train_dataset=data, callbacks=list(callbacks))


def train(made, **options):
    """(losses at every step, weights at the end, what the doctor said)."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made.train(**options)
    losses = [row["loss"] for row in made.state.log_history if "loss" in row]
    weights = torch.cat([p.detach().flatten() for p in made.model.parameters()])
    return losses, weights, [str(w.message) for w in said if "gradcheck_doctor" in str(w.message)]


@pytest.mark.parametrize("build, options", [(gpt2, {}), (bert, {}), (gpt2, {"gradient_accumulation_steps": 2}), (bert, {"max_grad_norm": 0.1, "optim": "sgd"}),
                                            (bert, {"bf16": True}), (gpt2, {"gradient_checkpointing": True})], ids=lambda v: getattr(v, "__name__", str(v)))
def test_training_is_bitwise_the_same(tmp_path, build, options):
    plain = train(trainer(tmp_path, build, **options))
    callback = DoctorTrainerCallback(every=1)
    watched = train(trainer(tmp_path, build, [callback], **options))
    assert len(plain[0]) == STEPS and plain[0] == watched[0] and torch.equal(plain[1], watched[1])
    recording = callback.report().recording
    assert len(recording.optimizers) == 1 and recording.total_steps == STEPS and {s.backwards for s in recording.steps} == {options.get("gradient_accumulation_steps", 1)}
    assert torch.overrides._len_torch_function_stack() == 0 and torch.Tensor.backward.__module__ == "torch._tensor"


def test_max_grad_norm_is_seen_as_clipping(tmp_path):
    callback = DoctorTrainerCallback(every=1)
    train(trainer(tmp_path, gpt2, [callback], max_grad_norm=0.25))
    clips = callback.report().recording.events_of("clip_norm")
    assert len(clips) == STEPS and {c.value for c in clips} == {0.25} and all(c.before > 0.25 for c in clips)
    assert all(c.span.file == __file__ for c in clips)      # the user's call of train(), not the plugin's own frame
    train(trainer(tmp_path, gpt2, [callback], max_grad_norm=0))
    assert not callback.report().recording.events_of("clip_norm")


def test_findings_are_said_once_the_root_cause_first(tmp_path):
    said = train(trainer(tmp_path, sick, [DoctorTrainerCallback()]))[2]
    assert len(said) == 1 and "at step 8:" in said[0] and "GD102 init-activation-mismatch error" in said[0] and "GD301" not in said[0]


def test_stop_and_raise(tmp_path):
    stopped = trainer(tmp_path, sick, [DoctorTrainerCallback(on_finding="stop")])
    train(stopped)
    assert stopped.state.global_step == 8
    with pytest.raises(UnhealthyTraining, match="GD102"):
        train(trainer(tmp_path, sick, [DoctorTrainerCallback(on_finding="raise")]))
    with pytest.raises(UnhealthyTraining, match="GD102"):
        train(trainer(tmp_path, sick, [DoctorTrainerCallback(on_finding="raise")], max_steps=5))      # judged at the end only
    with pytest.raises(ValueError, match="warn, raise, stop"):
        DoctorTrainerCallback(on_finding="shout")


@pytest.mark.parametrize("name, part", [("r.json", '"init-activation-mismatch"'), ("r.html", "init-activation-mismatch"), ("r.txt", "GD102 init-activation-mismatch")])
def test_report_file(tmp_path, name, part):
    train(trainer(tmp_path, sick, [DoctorTrainerCallback(output=str(tmp_path / name))]))
    assert part in (tmp_path / name).read_text()


def test_a_report_that_cannot_be_written_is_said_and_training_is_kept(tmp_path):
    losses, _, said = train(trainer(tmp_path, gpt2, [DoctorTrainerCallback(output=str(tmp_path / "none" / "r.json"))]))
    assert len(losses) == STEPS and "could not be written" in said[-1]


class Logger(TrainerCallback):
    """Stands where TensorBoard's and W&B's callbacks stand: in front of the user's."""

    def __init__(self):
        self.seen = {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.update({(state.global_step, k): v for k, v in logs.items() if k.startswith("doctor/")})


@pytest.mark.parametrize("options", [{}, {"logging_steps": 500}], ids=str)
def test_metrics_reach_the_loggers_in_front_and_the_history(tmp_path, options):
    logger = Logger()
    made = trainer(tmp_path, sick, [logger, DoctorTrainerCallback()], **options)
    train(made)
    names = {"doctor/health", "doctor/findings", "doctor/gradient_ratio", "doctor/dead_fraction", "doctor/update_ratio"}
    step = 8 if not options else STEPS
    assert {k for s, k in logger.seen if s == step} == names and logger.seen[step, "doctor/health"] == 0.0 and logger.seen[step, "doctor/gradient_ratio"] < 1e-3
    assert any(names <= set(row) for row in made.state.log_history)
    silent = Logger()
    train(trainer(tmp_path, sick, [silent, DoctorTrainerCallback(log_metrics=False)]))
    assert silent.seen == {}


@pytest.mark.parametrize("restore", [False, True])
def test_a_resumed_run_does_not_repeat_what_was_said_and_ends_the_same(tmp_path, restore):
    longer = {"max_steps": 18, "save_strategy": "steps", "save_steps": 9}
    whole = train(trainer(tmp_path / "whole", sick, **longer))
    first = trainer(tmp_path / "cut", sick, [DoctorTrainerCallback()], **longer)
    assert len(train(first)[2]) == 1
    checkpoint = tmp_path / "cut" / "checkpoint-9"
    assert json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]["DoctorTrainerCallback"]["attributes"]["known"]
    logger = Logger()
    resumed = trainer(tmp_path / "cut", sick, [logger, DoctorTrainerCallback()], restore_callback_states_from_checkpoint=restore, **longer)
    _, weights, said = train(resumed, resume_from_checkpoint=str(checkpoint))
    assert said == [] and torch.equal(weights, whole[1])
    assert (17, "doctor/health") in logger.seen


def test_a_second_training_with_the_same_callback_starts_anew(tmp_path):
    callback = DoctorTrainerCallback()
    assert [len(train(trainer(tmp_path, sick, [callback]))[2]) for _ in range(2)] == [1, 1]


def test_hooks_come_off_and_the_report_is_written_when_training_raises(tmp_path):
    callback = DoctorTrainerCallback(output=str(tmp_path / "r.json"))
    made = trainer(tmp_path, lambda: sick(bad=torch.arange(320)), [callback])
    with pytest.raises(RuntimeError, match="bad batch"):
        train(made)
    assert torch.overrides._len_torch_function_stack() == 0 and torch.Tensor.backward.__module__ == "torch._tensor"
    assert (tmp_path / "r.json").exists()


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_ctrl_c_gives_the_report_of_what_was_seen(tmp_path):
    callback = DoctorTrainerCallback(output=str(tmp_path / "r.json"))
    with pytest.raises(KeyboardInterrupt):
        train(trainer(tmp_path, sick, [Interrupt(), callback]))
    assert "init-activation-mismatch" in (tmp_path / "r.json").read_text() and callback.report().recording.total_steps == 3


def test_our_own_failure_never_ends_training(tmp_path, monkeypatch):
    callback = DoctorTrainerCallback()
    monkeypatch.setattr(callback, "report", lambda: 1 / 0)
    losses, _, said = train(trainer(tmp_path, gpt2, [callback]))
    assert len(losses) == STEPS and "judging failed (ZeroDivisionError" in said[0]


def test_there_is_no_report_before_training():
    with pytest.raises(doctor.DoctorError, match="nothing was observed yet"):
        DoctorTrainerCallback().report()
