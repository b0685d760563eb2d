"""doctor fix --run where the fault is in a file that the script imports."""
import json
import os

import pytest
from test_command_line import HEAD, doctor

from gradcheck_doctor.records import edited

LOOP = """
import torch
from torch import nn


def fit(model, x, y):
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(240):
        i = torch.arange(64) + 64 * (step % 8)
        loss = nn.functional.cross_entropy(model(x[i]), y[i])
        loss.backward()
        opt.step()
    return loss.item()
"""
TRAIN = HEAD + """
import sys
from {module} import fit
torch.manual_seed(0)
x = torch.randn(512, 8)
y = (x[:, 0] * x[:, 1] > 0).long()
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
print("LOSS", fit(model, x, y), sys.argv[1:])
"""


@pytest.fixture(params=["loop.py", "parts/loop.py"])
def project(request, tmp_path):
    """(folder, path of the imported file): beside the script, or in a package."""
    path = tmp_path / request.param
    path.parent.mkdir(exist_ok=True)
    path.write_text(LOOP)
    if path.parent != tmp_path:
        (path.parent / "__init__.py").write_text("from .loop import fit\n")
    (tmp_path / "train.py").write_text(TRAIN.format(module="parts" if path.parent != tmp_path else "loop"))
    return tmp_path, path


def test_the_imported_file_is_cured_and_only_that(project):
    folder, path = project
    script = (folder / "train.py").read_text()
    dry = doctor("fix", "train.py", "--run", "--unsafe-fixes", "--diff", "--", "7", cwd=folder)
    assert dry.returncode == 1 and "+        opt.zero_grad()" in dry.stdout, dry.stdout + dry.stderr
    assert f"+++ b/{path.relative_to(folder)}" in dry.stdout and path.read_text() == LOOP
    done = doctor("fix", "train.py", "--run", "--unsafe-fixes", "--", "7", cwd=folder)
    assert done.returncode == 0 and "(improved)" in done.stdout, done.stdout + done.stderr
    assert path.read_text() == LOOP.replace("        loss.backward()", "        opt.zero_grad()\n        loss.backward()")
    assert (folder / "train.py").read_text() == script
    assert not [f for _, _, files in os.walk(folder) for f in files if f.startswith("doctor_")]
    again = doctor("fix", "train.py", "--run", "--unsafe-fixes", "--check", cwd=folder)
    assert again.returncode == 0, again.stdout + again.stderr


def test_from_a_report_and_unverified(project):
    folder, path = project
    assert doctor("run", "--format", "json", "--output", "r.json", "train.py", cwd=folder).returncode == 1
    assert any(f["location"]["file"].endswith("loop.py") for f in json.loads((folder / "r.json").read_text())["findings"])
    done = doctor("fix", "--from", "r.json", "--unsafe-fixes", "--no-verify", cwd=folder)
    assert "(not verified)" in done.stdout and "opt.zero_grad()" in path.read_text(), done.stdout + done.stderr


def test_an_edited_text_stands_in_for_a_module_its_tracebacks_and_its_cached_code(tmp_path):
    (tmp_path / "part.py").write_text("def f():\n    return 'old'\n")
    (tmp_path / "new.txt").write_text("# é\n\n\ndef f():\n    raise ValueError('new line')\n")
    (tmp_path / "main.py").write_text("import traceback, part\ntry:\n    print(part.f())\nexcept ValueError:\n    traceback.print_exc()\n")
    plain = doctor("run", "main.py", cwd=tmp_path)                      # leaves cached code behind
    assert "old" in plain.stdout
    shown = doctor("run", "main.py", cwd=tmp_path, env=edited.environment({str(tmp_path / "part.py"): str(tmp_path / "new.txt")}))
    assert "ValueError: new line" in shown.stderr and "line 5, in f\n    raise ValueError('new line')" in shown.stderr, shown.stderr
    assert "old" in doctor("run", "main.py", cwd=tmp_path).stdout


def test_files_of_the_same_name_are_not_confused(tmp_path):
    """The script and the module it imports are both called loop.py: only the module is edited."""
    part = tmp_path / "parts" / "loop.py"
    part.parent.mkdir()
    part.write_text(LOOP)
    (tmp_path / "loop.py").write_text(TRAIN.format(module="parts.loop"))
    done = doctor("fix", "loop.py", "--run", "--unsafe-fixes", cwd=tmp_path)
    assert done.returncode == 0 and "(improved)" in done.stdout, done.stdout + done.stderr
    assert part.read_text() == LOOP.replace("        loss.backward()", "        opt.zero_grad()\n        loss.backward()")
    assert (tmp_path / "loop.py").read_text() == TRAIN.format(module="parts.loop")
