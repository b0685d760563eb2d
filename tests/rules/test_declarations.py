"""Every rule declares itself completely."""
import pytest

from gradcheck_doctor.errors import UnknownRule
from gradcheck_doctor.rules.page import markdown
from gradcheck_doctor.rules.registry import expand, find, rules


@pytest.mark.parametrize("rule", rules(), ids=lambda r: r.name)
def test_page_has_every_section(rule):
    page = markdown(rule)
    for section in ("What it measures", "Why it matters", "When it is harmless", "Sources", "Threshold"):
        assert f"## {section}" in page
    assert rule.threshold.source and rule.threshold.unit and rule.summary


def test_codes_and_names_are_unique_and_explained_codes_look_right():
    assert len({r.code for r in rules()}) == len({r.name for r in rules()}) == len(rules())
    for rule in rules():
        assert all(code.startswith("GD") and len(code) == 5 for code in rule.explains), rule.code
        assert rule.code not in rule.explains, rule.code


def test_selectors():
    assert expand(["GD2"]) == {r.code for r in rules() if r.code.startswith("GD2")}
    assert expand(["dead-relu"]) == {"GD201"}
    with pytest.raises(UnknownRule, match="dead-relu"):
        find("dead-relus")


def test_findings_are_independent_of_not_a_number():
    for rule in rules():
        assert rule.threshold.severity(float("nan")) is None
