"""How a pack is tested: its rules on models that are sick and healthy, its treatment on a file, and that the doctor finds it once installed."""
import os
import subprocess
import sys

import gradcheck_doctor_example_rules as pack
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradcheck_doctor as doctor
from gradcheck_doctor.rules.page import markdown
from gradcheck_doctor.treatments.tree import applied, read

SCRIPT = """\
import torch
from torch import nn

model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
criterion = nn.CrossEntropyLoss(label_smoothing={})   # keep this
batch = (torch.randn(64, 16), torch.randint(0, 8, (64,)))
"""


def recording(sizes=(16, 32, 8), smoothing=0.0, dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.ReLU(), nn.Linear(sizes[1], sizes[2])).to(dtype)
    batch = torch.randn(64, sizes[0], dtype=dtype), torch.randint(0, sizes[2], (64,))
    return doctor.audit(model, batch, lambda out, y: F.cross_entropy(out, y, label_smoothing=smoothing)).recording


def run(*arguments, cwd):
    return subprocess.run([sys.executable, "-m", "gradcheck_doctor", *arguments], capture_output=True, text=True, cwd=cwd, env=dict(os.environ))


def test_widths_that_are_multiples_of_8_are_fine():
    assert list(pack.PaddedWidth().check(recording())) == []


@pytest.mark.parametrize("dtype, severity", [(torch.float32, "info"), (torch.bfloat16, "warning")])
def test_padding_is_measured_and_serious_in_half_precision_only(dtype, severity):
    (finding,) = pack.PaddedWidth().check(recording((16, 32, 5), dtype=dtype))
    assert finding.severity == severity and finding.module == "2" and finding.evidence["padded"] == [8, 32]
    assert "38% of the work is on zeros" in finding.message


@pytest.mark.parametrize("smoothing, severity", [(0.1, None), (0.4, "warning"), (0.9, "error")])
def test_label_smoothing_is_judged_by_its_size(smoothing, severity):
    assert next((f.severity for f in pack.StrongLabelSmoothing().check(recording(smoothing=smoothing))), None) == severity


@pytest.mark.parametrize("rule", [pack.PaddedWidth, pack.StrongLabelSmoothing])
def test_pages_are_complete(rule):
    assert all(f"## {section}" in markdown(rule) for section in ("What it measures", "Why it matters", "When it is harmless", "Sources", "Threshold"))


def test_the_treatment_edits_one_number(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT.format("0.6"))
    (finding,) = pack.StrongLabelSmoothing().check(recording(smoothing=0.6))
    prescription = finding.fixes[0].prescription
    context = pack.Context(str(path))
    edits = pack.set_label_smoothing(context, finding, pack.Prescription("label-smoothing", "", arguments=prescription.arguments))
    assert applied(read(str(path)).text, edits) == SCRIPT.format("0.1")


def test_the_treatment_refuses_with_a_reason(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("x = 1\n")
    with pytest.raises(pack.TreatmentRefused, match="by keyword"):
        pack.set_label_smoothing(pack.Context(str(path)), pack.Finding("EX102", "", "error", ""), pack.Prescription("label-smoothing", "", arguments={"value": 0.1}))


def test_installed_the_doctor_finds_and_cures(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT.format("0.6"))
    sick = run("audit", "train.py:model", "--batch", "batch", "--select", "EX", "--output", "sick.json", cwd=tmp_path)
    assert sick.returncode == 1 and "EX102" in (tmp_path / "sick.json").read_text(), sick.stderr
    cured = run("fix", "--from", "sick.json", "--unsafe-fixes", "--no-verify", cwd=tmp_path)
    assert "label_smoothing=0.1" in cured.stdout and (tmp_path / "train.py").read_text() == SCRIPT.format("0.1"), cured.stderr
