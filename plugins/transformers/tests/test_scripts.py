"""The example scripts as users run them: with the doctor the same output, and a report after it."""
import os
import runpy
import subprocess
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

import gradcheck_doctor as doctor

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=EXAMPLES, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if "train_runtime" not in line], done.stderr


def test_doctor_run_leaves_a_trainer_script_its_output_and_adds_the_report(tmp_path):
    plain, plain_errors = run("trainer_script.py")
    watched, watched_errors = run("-m", "gradcheck_doctor", "run", "trainer_script.py")
    report = "\n".join(watched[len(plain):])
    assert len(plain) == 6 and watched[: len(plain)] == plain and watched_errors == plain_errors
    assert report.startswith("trainer_script.py  healthy") and "GPT2LMHeadModel" in report and "GD606" not in report


ONE_SIDED = """
import os, sys, warnings
sys.path[:0] = [{tests!r}]
from test_callback import DoctorTrainerCallback, UnhealthyTraining, sick, train, trainer

if os.environ["RANK"] != "0":
    DoctorTrainerCallback._look = lambda self, state: ""
made = trainer({folder!r}, sick, [DoctorTrainerCallback(on_finding="raise")])
try:
    train(made)
except UnhealthyTraining as error:
    print("raised", "GD102" in str(error))
print("rank", os.environ["RANK"], "steps", made.state.global_step, flush=True)
"""


def test_two_processes_end_together_by_the_first_ones_judgement(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(ONE_SIDED.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "out")))
    lines, _ = run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script))
    assert sorted(line for line in lines if line.startswith("rank")) == ["rank 0 steps 8", "rank 1 steps 8"]
    assert sorted(line for line in lines if line.startswith("raised")) == ["raised False", "raised True"]


def test_an_optimizer_that_accelerate_wrapped_is_one_optimizer():
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(4, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with doctor.watch(model, optimizer, every=1) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            accelerator.backward(model(torch.randn(8, 4)).square().mean())
            optimizer.step()
    assert [(o.name, o.steps) for o in watch.report().recording.optimizers] == [("SGD", 3)]


def test_the_accelerate_example_trains_the_same_when_watched(monkeypatch, capsys):
    def output(*arguments):
        monkeypatch.setattr(sys, "argv", ["accelerate_loop.py", *arguments])
        runpy.run_path(str(EXAMPLES / "accelerate_loop.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    bare, watched = output("--no-doctor"), output()
    assert len(bare) == 6 and watched[: len(bare)] == bare and watched[len(bare)].startswith("GPT2LMHeadModel  healthy")
