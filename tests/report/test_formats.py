import json
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
from records_sample import report

from gradcheck_doctor.records.findings import LayerRow
from gradcheck_doctor.report.render import FORMATS, Style, format_of, render
from gradcheck_doctor.report.report import Report

ROW = LayerRow(module="a", op="linear", order=0, on_spine=True, location=None, forward={}, gradient={"norm": 1.0}, weight={}, verdict="GD102, GD301")


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
    assert "explains vanishing-gradient" in page and "GD301 vanishing-gradient" in page and "He für ReLU" in page


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
    jsonschema.validate(json.loads(FORMATS["json"]([report(), report()], Style({}))), schema)
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


def test_lines_say_what_a_symptom_follows_from():
    lines = render(report(), "concise").splitlines()
    assert [("(follows from GD102)" in line) for line in lines if "GD102 " in line or "GD301" in line] == [False, True]
    assert "(follows from GD102)" in render(report(), "markdown") and "(follows from GD102)" in render(report(), "github")


def test_text_folds_prose_at_the_terminal_only():
    wide, narrow = render(report(), "text"), render(report(), "text", Style({}, width=50))
    prose = [line for line in narrow.splitlines() if line.startswith("    ") and "|" not in line]
    assert max(map(len, prose)) <= 50 < max(map(len, wide.splitlines()))
    assert "".join(narrow.split()) == "".join(wide.split())


def test_a_source_line_built_many_times_is_one_finding_and_verbose_has_all():
    data = report()
    cause, symptom = data.findings
    more = [replace(cause, module=f"blocks.{i}", related=()) for i in range(5)]
    elsewhere = replace(more[0], module="other", location=replace(cause.location, line=9))
    data = replace(data, findings=(cause, symptom, *more, elsewhere))
    text = render(data, "text")
    assert text.count("GD102 init-activation-mismatch") == 2 and "the same of blocks.0, blocks.1, blocks.2 and 2 more\n" in text
    assert render(data, "text", Style({}, verbose=True)).count("GD102 init-activation-mismatch") == 7


def test_rows_name_causes_and_verbose_rows_name_everything():
    from dataclasses import replace

    data = report()
    data = replace(data, layers=(ROW,))
    assert "GD102, GD301" not in render(data, "text")
    assert "GD102, GD301" in render(data, "text", Style({}, verbose=True))


def test_calls_in_a_loop_are_one_row_and_json_has_them_all():
    from dataclasses import replace

    calls = [replace(ROW, module="cell", order=2 * n, gradient={"norm": 10.0 ** -n}, verdict="GD301" if n else "GD102") for n in range(5)]
    few = [replace(ROW, module="head", op="norm", order=2 * n + 1) for n in range(3)]
    data = replace(report(), layers=(*calls, *few))
    for text in (render(data, "text", Style({}, verbose=True)), render(data, "html").partition("<details>")[2]):
        assert text.count("cell") == 1 and text.count("head") == 3 and "linear x5" in text and "0.0001 to 1" in text and "GD102, GD301" in text
    assert len(json.loads(render(data, "json"))["layers"]) == 8


def test_html_underlines_the_expression(tmp_path):
    from dataclasses import replace

    from gradcheck_doctor.records.sites import Span

    path = tmp_path / "m.py"
    path.write_text("    x = [nn.Linear(1, 2), 3]\n")
    data = report()
    first = replace(data.findings[0], location=Span(str(path), 1, 10, 1, 25))
    assert "x = [<mark>nn.Linear(1, 2)</mark>, 3]</pre>" in render(replace(data, findings=(first,)), "html")


def test_bars_of_a_model_with_mere_information_are_not_red():
    from dataclasses import replace

    data = report()
    assert 'class="sick"' in render(replace(data, layers=(ROW,)), "html")
    calm = tuple(replace(f, severity="info") for f in data.findings)
    assert 'class="sick"' not in render(replace(data, layers=(ROW,), findings=calm), "html")


def test_information_that_a_cause_explains_stands_under_it():
    import torch
    from torch import nn

    import gradcheck_doctor as doctor

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    nn.init.constant_(model[2].bias, -10.0)
    found = doctor.audit(model, (torch.randn(256, 16), torch.randint(0, 4, (256,))), loss=nn.CrossEntropyLoss()).findings
    assert found[0].code == "GD104" and any(f.severity == "info" for f in found[1:])
    assert {f.fingerprint for f in found[1:]} == set(found[0].related)


@pytest.mark.parametrize(("end", "said"), [(2.29, True), (2.0, False), (math.nan, False)])
def test_a_loss_that_went_nowhere_is_said_where_nothing_was_found(end, said):
    flat = replace(report(), findings=(), curves={"loss": tuple((float(n), 2.3 + (end - 2.3) * n / 39) for n in range(40))})
    assert ("yet the loss hardly fell (2.3 to 2.29)" in render(flat, "text")) is said


def test_a_run_that_went_nowhere_is_not_called_healthy():
    data = replace(report(), kind="run", findings=(), curves={"loss": tuple((float(i), 2.3 - 0.0005 * i) for i in range(40))})
    for name in ("text", "markdown", "html"):
        shown = render(data, name).partition("</style>")[2 if name == "html" else 0]
        assert "nothing serious found" in shown
        assert "healthy" not in shown
    fallen = replace(data, curves={"loss": tuple((float(i), 2.3 / (i + 1)) for i in range(40))})
    assert "healthy" in render(fallen, "text")


def test_quiet_says_nothing_of_a_healthy_model():
    healthy = replace(report(), findings=())
    assert render([healthy, healthy], "text", Style({}, quiet=True)) == ""
    assert render([healthy, report()], "text", Style({}, quiet=True)).startswith("m.py  sick")
