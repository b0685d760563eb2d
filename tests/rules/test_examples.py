"""The documented examples: each sick model has its finding exactly on the marked line, its cured twin has nothing to report.

A sick file marks the line at fault: `# sick: GD102`, or `# sick: GD502 info` for a rule that is information by design.
"""
import re
from pathlib import Path

import pytest

from gradcheck_doctor.rules.registry import find
from gradcheck_doctor.session import audit_target
from gradcheck_doctor.targets.resolve import resolve

FOLDER = Path(__file__).parents[2] / "docs" / "rules"
SICK = sorted(FOLDER.glob("*/sick*.py"))
MARK = re.compile(r"# sick: (GD\d{3})( info)?$")
EVERY_AUDITED_RULE = {
    "GD1": (101, 102, 103, 104, 105, 106, 107), "GD2": (201, 202, 203, 204, 206, 207, 208, 209, 211), "GD3": (301, 302, 303, 304), "GD4": (401, 405),
    "GD5": (501, 502, 503, 504, 507), "GD6": (601, 602, 603, 604, 605, 608), "GD8": (801, 802, 803)}


def name(path):
    return f"{path.parent.name}/{path.stem}"


def findings(path):
    return [f for target in resolve(str(path)) for f in audit_target(target).report.findings]


def marks(path):
    """(code, line, by design no more than info) of each marked line."""
    return [(m[1], number, bool(m[2])) for number, line in enumerate(path.read_text().splitlines(), 1) if (m := MARK.search(line))]


@pytest.mark.parametrize("path", SICK, ids=name)
def test_the_finding_is_on_the_marked_line(path):
    expected = marks(path)
    code = find(path.parent.name).code
    assert {c for c, _, _ in expected} == {code}
    found = [f for f in findings(path) if f.code == code and (f.severity != "info" or any(info for _, _, info in expected))]
    assert {Path(f.location.file).resolve() for f in found} == {path}, [f.message for f in found]
    assert {f.location.line for f in found} == {line for _, line, _ in expected}
    assert all(f.severity == "info" for f in found if any(info for _, _, info in expected))


@pytest.mark.parametrize("path", SICK, ids=name)
def test_the_cured_twin_is_quiet(path):
    twin = path.with_name(path.name.replace("sick", "healthy"))
    assert not marks(twin)
    code = find(path.parent.name).code
    assert [(f.code, f.severity, f.message) for f in findings(twin) if f.code == code or f.severity != "info"] == []


@pytest.mark.parametrize("family", EVERY_AUDITED_RULE)
def test_every_rule_of_the_audit_has_an_example(family):
    shown = {find(path.parent.name).code for path in SICK}
    assert {f"GD{number}" for number in EVERY_AUDITED_RULE[family]} <= shown


def test_no_file_is_left_over():
    """Every file belongs to a pair, every folder to a rule."""
    pairs = {path.with_name(path.name.replace("sick", kind)) for path in SICK for kind in ("sick", "healthy")}
    assert set(FOLDER.glob("*/*")) - set(FOLDER.glob("*/__pycache__")) == pairs
    assert all(find(p.parent.name).name == p.parent.name for p in pairs)
