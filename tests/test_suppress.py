"""Suppression comments: what they silence, and that a mistake silences nothing and is said."""
from dataclasses import replace

import pytest

from gradcheck_doctor.records.findings import Finding
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.suppress import is_suppressed


def suppressed(tmp_path, comment, code="GD201", rule="dead-relu", head=""):
    file = tmp_path / "m.py"
    file.write_text(f"{head}\nlayer = build(\n    3)  {comment}\n")
    return is_suppressed(Finding(code, rule, "warning", "m", location=Span(str(file), 2, 1, 3, 7)))


@pytest.mark.parametrize("comment", ["# doctor: ignore", "# doctor: ignore[GD201]", "# doctor:ignore[GD1, gd2]", "# DOCTOR: IGNORE[dead-relu]", "# doctor: ignore[all]",
                                     "# noqa: E501  # doctor: ignore[GD201]"])
def test_a_comment_silences_its_line(tmp_path, comment):
    assert suppressed(tmp_path, comment)


@pytest.mark.parametrize("comment", ["", "# doctor: ignore[GD301]", "# doctor: ignore[]", "# doctor: look"])
def test_others_do_not(tmp_path, comment):
    assert not suppressed(tmp_path, comment)


@pytest.mark.parametrize("comment", ["# doctor: ignore[GD201", "# doctor: ignore [GD301]", "# doctor: ignore["])
def test_an_open_bracket_silences_nothing_and_is_said(tmp_path, comment, capsys):
    assert not suppressed(tmp_path, comment)
    assert "m.py:3: this comment ignores nothing" in capsys.readouterr().err


@pytest.mark.parametrize(("head", "silent"), [("# doctor: file-ignore[GD201]", True), ("# doctor: file-ignore", True), ("# doctor: file-ignore[GD301]", False),
                                              ("# doctor: file-ignore[GD201", False)])
def test_a_comment_for_the_whole_file(tmp_path, head, silent):
    assert suppressed(tmp_path, "", head=head) is silent


def test_a_comment_where_the_layer_is_built_counts_wherever_the_finding_is(tmp_path):
    built, drawn = tmp_path / "built.py", tmp_path / "drawn.py"
    built.write_text("layer = nn.Linear(3, 4)  # doctor: ignore[GD102]\n")
    drawn.write_text("nn.init.normal_(layer.weight)\n")
    finding = Finding("GD102", "init-activation-mismatch", "warning", "m", location=Span(str(drawn), 1, 1))
    assert not is_suppressed(finding)
    assert is_suppressed(replace(finding, built=Span(str(built), 1, 9)))
