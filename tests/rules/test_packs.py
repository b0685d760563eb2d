"""Third parties' packs, installed by a folder with a dist-info on the path: good ones are used, broken ones are said once and left out."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradcheck_doctor as doctor
from gradcheck_doctor.packs import complain
from gradcheck_doctor.rules.registry import find, rules
from gradcheck_doctor.treatments.plan import planned, planners
from gradcheck_doctor.treatments.tree import applied

PACK = """
from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold

class Square(Rule):
    '''A square layer.'''
    code = "{code}"
    name = "{name}"
    summary = "a square layer"
    threshold = Threshold(1.0, None, "layers", "made up")

    def measure(self, recording):
        {body}

    def message(self, m):
        return f"{{m.module}} is square"

    def prescribe(self, m, recording):
        return (Prescription("{treatment}", "Make it wider", safety="safe"),)

def widen(context, finding, prescription):
    tree = context.tree()
    return [tree.before(tree.root.body[-1], ["# widened"])]

def fail(context, finding, prescription):
    raise KeyError("width")
"""
FINDS = "yield from (Measurement(1.0, module=o.module, op=o.op, location=o.called) for o in recording.operations if o.op == 'linear')"
RULES = "[gradcheck_doctor.rules]\nsquare = square_pack\n"
TREATMENT = "\n[gradcheck_doctor.treatments]\n{} = square_pack:{}\n"


def write(folder, text=None, points=RULES, **parts):
    """A distribution `square-pack` of one module, as an installer would leave it in `folder`."""
    text = PACK.format(**{"code": "SQ001", "name": "square-layer", "body": FINDS, "treatment": "widen", **parts}) if text is None else text
    (folder / "square_pack.py").write_text(text)
    info = folder / "square_pack-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: square-pack\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(points)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a pack in this process; gone again after the test."""
    def forget():
        sys.modules.pop("square_pack", None)
        for cached in (rules, planners, complain):
            cached.cache_clear()

    def call(**parts):
        write(tmp_path, **parts)
        monkeypatch.syspath_prepend(str(tmp_path))
        forget()

    yield call
    monkeypatch.undo()
    forget()


def audit():
    return doctor.audit(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)), torch.randn(16, 4), select=["SQ"])


def test_a_pack_is_listed_by_the_command_without_torch_or_a_word_on_stderr(tmp_path):
    write(tmp_path)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    program = "import sys\nfrom gradcheck_doctor.cli.main import main\ntry: main(['rule'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0 and "SQ001" in done.stdout and done.stdout.endswith("False\n") and done.stderr == ""


def test_a_pack_is_explained_and_applied(install):
    install()
    assert find("square-layer").page() == "A square layer."
    assert [f.code for f in audit().findings] == ["SQ001", "SQ001"]


def test_the_documented_pack_works(install, capsys):
    page = (Path(__file__).parent.parent.parent / "docs" / "plugins.md").read_text()
    (text,) = [block.partition("```")[0] for block in page.split("```python\n") if block.startswith("# house_rules.py")]
    install(text=text)
    batch = torch.randn(16, 4), torch.randint(0, 2, (16,))
    report = doctor.audit(torch.nn.Linear(4, 2), batch, torch.nn.CrossEntropyLoss(label_smoothing=0.5), select=["HR"])
    assert [(f.code, f.severity, f.message) for f in report.findings] == [("HR001", "warning", "cross_entropy has label_smoothing=0.5 (limit 0.3)")]
    assert capsys.readouterr().err == ""


BROKEN = {
    "import error": ({"text": "import no_such_module_here\n"}, "cannot be loaded and is left out (ModuleNotFoundError"),
    "syntax": ({"text": "def broken(:\n"}, "cannot be loaded and is left out (SyntaxError"),
    "exit": ({"text": "raise SystemExit(3)\n"}, "cannot be loaded and is left out (SystemExit"),
    "missing name": ({"points": RULES.replace("square_pack", "square_pack:Circle")}, "cannot be loaded and is left out (AttributeError"),
    "no rule": ({"text": "x = 1\n"}, "holds no rule"),
    "taken code": ({"code": "GD201"}, "GD201 square-layer is taken by gradcheck_doctor.rules.activations.dead_relu.DeadRelu"),
    "taken name": ({"name": "dead-relu"}, "is taken by"),
    "odd code": ({"code": "square"}, "is not one to three capital letters and three digits"),
    "undeclared": ({"text": PACK.format(code="SQ001", name="x", body=FINDS, treatment="t").replace('summary = "a square layer"', "")}, "does not declare summary"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_pack_is_one_message_and_no_crash(install, capsys, case):
    parts, message = BROKEN[case]
    install(**parts)
    assert find("GD201").name == "dead-relu" and all(not r.code.startswith("SQ") for r in rules())
    said = capsys.readouterr()
    assert message in said.err and "square-pack 1.5" in said.err and said.err.count("\n") == 1 and said.out == ""


def test_a_rule_that_raises_is_left_out_and_the_others_judge(install, capsys):
    install(body="raise ZeroDivisionError('no layers')")
    model = torch.nn.Sequential(*[layer for _ in range(16) for layer in (torch.nn.Linear(32, 32), torch.nn.ReLU())], torch.nn.Linear(32, 2))
    for _ in range(2):
        assert doctor.audit(model, torch.randn(16, 32)).has("GD102")
    assert capsys.readouterr().err.count("SQ001 square-layer of square_pack failed and is left out (ZeroDivisionError: no layers)") == 1


def fixes(tmp_path):
    """What becomes of the pack's prescription for a file of one line."""
    path = tmp_path / "net.py"
    path.write_text("x = 1\n")
    return path, [fix for _, fix in planned(audit().data, str(path), unsafe=False)]


def test_a_treatment_edits_the_source(install, tmp_path):
    install(points=RULES + TREATMENT.format("widen", "widen"))
    path, (fix, *_) = fixes(tmp_path)
    assert applied(path.read_text(), fix.edits) == "# widened\nx = 1\n"


def test_a_treatment_that_fails_is_a_refusal(install, tmp_path):
    install(points=RULES + TREATMENT.format("widen", "fail"))
    assert "the treatment 'widen' of another package failed: KeyError" in fixes(tmp_path)[1][0].refusal


@pytest.mark.parametrize("name, value, message", [("zero-grad", "widen", "there is a treatment of that name already"), ("widen", "nothing", "cannot be loaded"),
                                                  ("widen", "__name__", "a treatment is a function")])
def test_a_broken_treatment_is_one_message(install, tmp_path, capsys, name, value, message):
    install(points=RULES + TREATMENT.format(name, value))
    assert "no source edit is known" in fixes(tmp_path)[1][0].refusal
    assert message in capsys.readouterr().err
