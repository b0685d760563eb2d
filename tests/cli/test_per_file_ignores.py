"""`per-file-ignores` of [tool.gradcheck-doctor] silences rules in some files, from wherever the command runs."""
import pytest

from gradcheck_doctor.config import load
from gradcheck_doctor.errors import ConfigError
from gradcheck_doctor.session import audit_target
from gradcheck_doctor.targets.resolve import resolve

SICK = """import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(*[m for _ in range(16) for m in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 4))
example_inputs = torch.randn(64, 32)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "deep.py").write_text(SICK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(project, table):
    (project / "pyproject.toml").write_text(f"[tool.gradcheck-doctor.per-file-ignores]\n{table}\n")
    return audit_target(resolve(str(project / "nets" / "deep.py"))[0], config=load()).report


@pytest.mark.parametrize("pattern", ["deep.py", "*.py", "nets/*.py", "nets/deep.py"])
@pytest.mark.parametrize("codes", ["['GD1', 'GD3', 'GD2', 'GD5']", "['ALL']"])
def test_a_matching_file_is_quiet_and_counted(project, pattern, codes):
    seen = report(project, f"'{pattern}' = {codes}")
    assert not seen.findings
    assert seen.suppressed > 0


@pytest.mark.parametrize("pattern", ["other.py", "deep", "other/*.py", "nets/"])
def test_another_file_is_not(project, pattern):
    assert "GD102" in {f.code for f in report(project, f"'{pattern}' = ['ALL']").findings}


def test_only_the_rules_named_are_silent(project):
    codes = {f.code for f in report(project, "'deep.py' = ['init-activation-mismatch']").findings}
    assert "GD102" not in codes
    assert "GD301" in codes


def test_paths_start_at_the_folder_of_pyproject(project, monkeypatch):
    monkeypatch.chdir(project / "nets")
    assert not report(project, "'nets/deep.py' = ['ALL']").findings
    assert report(project, "'deep/nets.py' = ['ALL']").findings


def test_a_lone_string_is_refused(project):
    with pytest.raises(ConfigError, match="'deep.py' must be a list of strings, not 'GD102'"):
        report(project, "'deep.py' = 'GD102'")
