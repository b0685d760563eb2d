"""The plugin in pytest sessions of its own, as users run it."""
import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

TESTS = """
import pytest
import torch
from torch import nn

import gradcheck_doctor as doctor


doctor.audit(nn.Bilinear(8, 8, 8), (torch.randn(16, 8), torch.randn(16, 8)))


def deep():
    return nn.Sequential(*[m for _ in range(16) for m in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 8))


def test_sick(assert_healthy):
    assert_healthy(deep(), torch.randn(16, 32))


def test_healthy(assert_healthy):
    report = assert_healthy(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)), torch.randn(16, 8))
    assert report.verdict == "healthy"


def test_looks_only():
    assert doctor.audit(deep(), torch.randn(16, 32)).has("GD102")


@pytest.fixture(scope="module")
def audited():
    return doctor.audit(nn.Linear(8, 8), torch.randn(16, 8))


def test_audits_nothing_itself(audited):
    assert audited.verdict == "healthy"
"""
LIGHT = "import sys\n\n\ndef test_light():\n    assert 'torch' not in sys.modules\n"


def run(folder, *arguments, **files):
    """pytest in `folder`; the plugin comes by its entry point where the package is installed, else by -p."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    installed = any(point.name == "gradcheck_doctor" for point in entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", "gradcheck_doctor.integrations.pytest_plugin"]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, *arguments], cwd=folder, capture_output=True, text=True,
                          env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")})
    return done.returncode, done.stdout


def summary(output):
    """(lines of the table, last line) of the section."""
    lines = output[output.index("= doctor ="):].splitlines()[1:]
    end = next(i for i, line in enumerate(lines) if " audit" in line or "no model" in line)
    return [" ".join(line.split()) for line in lines[2:end]], lines[end]


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_the_summary_lists_every_audit_the_sickest_first_and_one_at_import_once(tmp_path, workers):
    status, output = run(tmp_path, "--doctor", *workers, test_models=TESTS)
    rows, last = summary(output)
    assert status == 1 and "1 failed, 3 passed" in output and "the model is not healthy" in output
    assert sorted(rows[:2]) == ["sick Sequential GD102 init-activation-mismatch error 0 test_models.py::test_looks_only",
                                "sick Sequential GD102 init-activation-mismatch error 0 test_models.py::test_sick"]
    assert sorted(rows[2:]) == ["healthy Bilinear none (collection)", "healthy Linear none test_models.py::test_audits_nothing_itself",
                                "healthy Sequential none test_models.py::test_healthy"]
    assert last == "5 audits: 2 sick, 3 healthy"


def test_start_up_does_not_import_torch(tmp_path):
    status, output = run(tmp_path, "--doctor", test_light=LIGHT)
    assert status == 0 and summary(output) == ([], "no model was audited")


def test_without_the_option_there_is_no_section(tmp_path):
    status, output = run(tmp_path, test_light=LIGHT)
    assert status == 0 and "doctor" not in output
