"""What other programs parse must survive whatever a message, a path or a source line holds."""
import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from records_sample import report

from gradcheck_doctor.records.findings import Edit, Fix, Prescription
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.report.render import render

MESSAGE = "50 % of\r\nunits, 'a::b' \x1b[0m\x00 → \u2028 dead"


def spoilt(file="m.py", span=(3, 5, 3, 9), message=MESSAGE, fixes=()):
    sample = report()
    return replace(sample, findings=(replace(sample.findings[0], message=message, location=Span(file, *span), fixes=fixes, related=()),))


def test_github_commands_stay_on_one_line_and_read_back():
    """The runner undoes %25, %0D and %0A in the message, and %3A and %2C in properties, in this order backwards."""
    text = render(spoilt("50%, a:b.py"), "github")
    line, = text.split("\n")
    properties, message = re.fullmatch(r"::error ([^:]*)::(.*)", line, re.S).groups()
    assert message.replace("%0A", "\n").replace("%0D", "\r").replace("%25", "%") == f"a.b: {MESSAGE}"
    assert dict(p.split("=", 1) for p in properties.split(","))["file"] == "50%25%2C a%3Ab.py"


def test_junit_is_xml_whatever_a_message_holds():
    suite = ElementTree.fromstring(render(spoilt(), "junit").split("\n", 1)[1]).find("testsuite")
    text = suite.find("testcase/failure").get("message")
    assert "→" in text and "\x00" not in text and "\x1b" not in text


@pytest.mark.parametrize("name", ["json", "gitlab", "rdjson", "sarif"])
def test_json_formats_keep_the_message(name):
    assert MESSAGE in [v for v in _strings(json.loads(render(spoilt(), name))) if "dead" in v][0]


def _strings(value):
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value] if isinstance(value, str) else [s for child in children for s in _strings(child)]


def test_equal_findings_of_two_models_stay_two_in_gitlab():
    rows = json.loads(render([report(), report()], "gitlab"))
    assert len({row["fingerprint"] for row in rows}) == len(rows) == 4


def test_columns_are_bytes_for_reviewdog_and_characters_for_sarif(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = 'name = "é€𝄞"; layer = build()\n'
    (tmp_path / "m.py").write_text(line)
    column = line.index("build") + 1
    edit = Fix(Prescription("initialise", "t", "safe"), (Edit(Span("m.py", 1, column, 1, column + 7), "other()"),))
    sample = spoilt(span=(1, column, 1, column + 7), fixes=(edit,))
    diagnostic, = json.loads(render(sample, "rdjson"))["diagnostics"]
    start, end = diagnostic["location"]["range"]["start"]["column"], diagnostic["location"]["range"]["end"]["column"]
    assert line.encode()[start - 1:end - 1] == b"build()"
    assert diagnostic["suggestions"] == [{"range": {"start": {"line": 1}, "end": {"line": 1}}, "text": line.replace("build", "other").rstrip("\n")}]
    result, = json.loads(render(sample, "sarif"))["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["region"]["startColumn"] == column


def test_each_suggestion_stands_in_a_comment_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text("a = 1\nb = 2\nc = 3\n")
    edits = Edit(Span("m.py", 3, 5, 3, 6), "30"), Edit(Span("m.py", 1, 5, 1, 6), "10")
    rows = json.loads(render(spoilt(span=(3, 1, 3, 6), fixes=(Fix(Prescription("initialise", "t"), edits),)), "rdjson"))["diagnostics"]
    assert [r["suggestions"][0]["text"] for r in rows] == ["a = 10", "c = 30"]
    assert rows[1]["location"]["range"] == rows[1]["suggestions"][0]["range"] and rows[1]["message"].startswith("part 2 of: t")


def test_without_the_source_a_fix_is_named_but_not_suggested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    diagnostic, = json.loads(render(replace(report(), findings=report().findings[:1]), "rdjson"))["diagnostics"]
    assert "suggestions" not in diagnostic and "try: He für ReLU [safe, measured to help]" in diagnostic["message"]


def test_many_models_are_one_sarif_run_and_a_finding_without_a_place_stands_at_its_file():
    """Code scanning takes one run of a tool and category, and no result without a location."""
    run, = json.loads(render([report(), report()], "sarif"))["runs"]
    assert len(run["results"]) == 4 and [r["id"] for r in run["tool"]["driver"]["rules"]] == ["GD102", "GD301"]
    assert all(r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "m.py" for r in run["results"])
