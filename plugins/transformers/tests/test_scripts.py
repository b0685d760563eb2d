"""The example scripts as users run them: with the doctor the same output, and a report after it."""
import os
import runpy
import subprocess
import sys
from pathlib import Path

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


def test_the_accelerate_example_trains_the_same_when_watched(monkeypatch, capsys):
    def output(*arguments):
        monkeypatch.setattr(sys, "argv", ["accelerate_loop.py", *arguments])
        runpy.run_path(str(EXAMPLES / "accelerate_loop.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    bare, watched = output("--no-doctor"), output()
    assert len(bare) == 6 and watched[: len(bare)] == bare and watched[len(bare)].startswith("GPT2LMHeadModel  healthy")
