"""Suppression comments: what they silence, and that a mistake silences nothing and is said."""
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
