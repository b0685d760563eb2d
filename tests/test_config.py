"""pyproject.toml and baselines: every mistake is one clear message, and what is right has its effect wherever the command runs."""
import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import nn

from gradcheck_doctor import baseline
from gradcheck_doctor.config import Config, load
from gradcheck_doctor.errors import ConfigError
from gradcheck_doctor.observe.probe import probe
from gradcheck_doctor.rules.engine import diagnose

TABLE = "[tool.gradcheck-doctor]\n"
BROKEN = {
    "tool is no table": ("tool = 3\n", "must be a table"),
    "thresholds is no table": (TABLE + "thresholds = 3\n", "thresholds must be a table"),
    "threshold is no table": (TABLE + "thresholds = {GD301 = 3}\n", "thresholds.GD301 must be a table"),
    "unknown level": (TABLE + "[tool.gradcheck-doctor.thresholds.GD301]\nfoo = 3\n", "unknown key 'foo'"),
    "no number": (TABLE + "thresholds = {vanishing-gradient = {warning = 'a'}}\n", "warning must be a number"),
    "a truth is no number": (TABLE + "thresholds = {GD301 = {error = true}}\n", "error must be a number"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_table_is_said(name, tmp_path):
    text, said = BROKEN[name]
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load(start=tmp_path)


def test_a_baseline_is_meant_from_the_folder_of_its_pyproject(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text(TABLE + "baseline = 'known.json'\n")
    (tmp_path / "nets").mkdir()
    monkeypatch.chdir(tmp_path / "nets")
    assert load().baseline == str(tmp_path / "known.json")


@pytest.mark.parametrize("content", ["", "3", "[]", '{"findings": 3}', '{"findings": [{}]}', '{"version": 99, "findings": {}}'])
def test_what_is_no_baseline_is_refused(content, tmp_path):
    file = tmp_path / "known.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match="is no baseline of this tool"):
        baseline.read(str(file))


def test_a_folder_is_no_baseline(tmp_path):
    with pytest.raises(ConfigError, match="can't be read"):
        baseline.read(str(tmp_path))


def test_a_baseline_names_its_files_from_the_root_of_the_project(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(16) for layer in (nn.Linear(32, 32), nn.ReLU())), nn.Linear(32, 2))
    found = diagnose(probe(model, lambda m: m(torch.randn(64, 32)).square().mean()))
    assert found
    baseline.write(str(tmp_path / "known.json"), found)
    rows = json.loads((tmp_path / "known.json").read_text())["findings"]
    assert {row["file"] for row in rows.values()} <= {"tests/test_config.py", ""}
    assert baseline.read(str(tmp_path / "known.json")) == {f.fingerprint for f in found}


def test_a_threshold_is_found_by_code_and_by_name():
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(32, 32), nn.ReLU())), nn.Linear(32, 2))
    recording = probe(model, lambda m: m(torch.randn(64, 32)).square().mean())
    assert "GD301" not in {f.code for f in diagnose(recording) if f.severity != "info"}
    for rule in ("GD301", "vanishing-gradient"):
        found = diagnose(recording, config=Config(thresholds={rule: {"warning": 0.9}}))
        assert "GD301" in {f.code for f in found}


def test_the_documented_table_is_understood(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text()
    (tmp_path / "pyproject.toml").write_text(page.partition("```toml\n")[2].partition("```")[0])
    config = load(start=tmp_path)
    assert config.thresholds == {"vanishing-gradient": {"warning": 1e-3, "error": 1e-4}, "GD201": {"error": 0.8}}
    documented = {line.partition(" = ")[0].strip().replace("-", "_") for line in (tmp_path / "pyproject.toml").read_text().splitlines() if " = " in line}
    assert {f.name for f in fields(Config)} - documented == {"per_file_ignores", "thresholds"}
