import json
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
from records_sample import report

from gradcheck_doctor.report.render import FORMATS, Style, format_of, render
from gradcheck_doctor.report.report import Report


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_names_the_findings(name):
    text = render(report(), name)
    assert "GD102" in text


@pytest.mark.parametrize("name", ["json", "sarif", "gitlab", "rdjson"])
def test_json_formats_parse(name):
    json.loads(render(report(), name))


def test_github_annotations_are_escaped():
    line = render(report(), "github").splitlines()[0]
    assert line.startswith("::error title=GD102 init-activation-mismatch,file=m.py,line=3,col=5")
    assert "%0A" in line


def test_junit_counts_failures():
    suite = ElementTree.fromstring(render(report(), "junit").split("\n", 1)[1]).find("testsuite")
    assert suite.get("failures") == "2"


def test_text_lists_symptoms_under_their_cause():
    text = render(report(), "text")
    assert text.index("GD102") < text.index("explains: GD301 vanishing-gradient")
    assert "\x1b[" not in text
    assert "\x1b[" in render(report(), "text", Style({}, colour=True))


def test_html_asks_nobody_for_anything():
    page = render(report(), "html")
    assert "http://" not in page and "https://" not in page and "<script" not in page
    assert "explains: GD301 vanishing-gradient" in page and "He für ReLU" in page


def test_sarif_has_relative_uris_and_fixes():
    run = json.loads(render(report(), "sarif"))["runs"][0]
    result = run["results"][0]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "m.py"
    assert result["fixes"][0]["artifactChanges"][0]["replacements"][0]["insertedContent"]["text"] == "x"
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == "GD102"


def test_format_from_the_suffix():
    assert format_of("a/b.sarif") == "sarif" and format_of("x.md") == "markdown" and format_of("x.bin") is None


def test_json_follows_the_schema_that_ships():
    import importlib.resources

    import jsonschema
    import torch
    from torch import nn

    import gradcheck_doctor as doctor

    schema = json.loads(importlib.resources.files("gradcheck_doctor.report").joinpath("schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    model = nn.Sequential(*[m for _ in range(16) for m in (nn.Linear(8, 8), nn.ReLU())], nn.Linear(8, 2))
    for data in (json.loads(render(report(), "json")), doctor.audit(model, torch.randn(32, 8), steps=3).to_json()):
        jsonschema.validate(data, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**data, "schema_version": 2}, schema)


def test_sarif_is_read_by_an_independent_model_of_the_standard():
    """sarif-pydantic models SARIF 2.1.0; required fields and types are checked by it, not by us."""
    sarif_pydantic = pytest.importorskip("sarif_pydantic")
    log = sarif_pydantic.Sarif.model_validate(json.loads(render(report(), "sarif")))
    assert log.runs[0].results[0].rule_id == "GD102"
    broken = json.loads(render(report(), "sarif"))
    del broken["runs"][0]["tool"]
    with pytest.raises(ValueError):
        sarif_pydantic.Sarif.model_validate(broken)


@pytest.mark.parametrize(("name", "part"), [("r.json", '"schema_version": 1'), ("r.md", "| severity |"), ("r.html", "</html>"), ("r", "GD102 init-activation")])
def test_a_report_is_written_in_the_format_of_the_suffix(tmp_path, name, part):
    Report(report()).write(str(tmp_path / name))
    assert part in (tmp_path / name).read_text()


def test_sarif_follows_the_schema_of_the_standard():
    """tests/data/sarif-2.1.0.json is the schema of the OASIS standard, as the package @microsoft/sarif-multitool-linux (MIT) carries it."""
    schema = json.loads((Path(__file__).parent.parent / "data" / "sarif-2.1.0.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    log = json.loads(render([report(), report()], "sarif"))
    assert [e.message for e in validator.iter_errors(log)] == []
    log["runs"][0]["results"][0]["level"] = "fatal"
    assert list(validator.iter_errors(log))
