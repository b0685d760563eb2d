"""The example scripts as users run them: with the doctor the same output, and a report after it."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=EXAMPLES, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    return done


def timeless(text):
    return [line for line in text.splitlines() if "train_runtime" not in line]


@pytest.fixture(scope="module")
def plain():
    return run("trainer_script.py")


def test_doctor_run_leaves_a_trainer_script_its_output_and_adds_the_report(plain):
    watched = run("-m", "gradcheck_doctor", "run", "trainer_script.py")
    own = timeless(plain.stdout)
    assert len(own) == 6 and timeless(watched.stdout)[: len(own)] == own
    report = "\n".join(timeless(watched.stdout)[len(own):])
    assert report.startswith("trainer_script.py  healthy") and "GPT2LMHeadModel" in report and "GD606" not in report


def test_with_an_output_file_stdout_and_stderr_are_the_scripts_alone(plain, tmp_path):
    watched = run("-m", "gradcheck_doctor", "run", "--output", str(tmp_path / "r.json"), "trainer_script.py")
    assert timeless(watched.stdout) == timeless(plain.stdout) and watched.stderr == plain.stderr
    assert '"kind": "run"' in (tmp_path / "r.json").read_text()


def test_the_accelerate_example_trains_the_same_when_watched():
    bare, watched = (run("accelerate_loop.py", *more).stdout.splitlines() for more in (["--no-doctor"], []))
    assert len(bare) == 6 and watched[: len(bare)] == bare and watched[len(bare)].startswith("GPT2LMHeadModel  healthy")
