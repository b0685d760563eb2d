"""The command as users run it: real subprocesses, one clear message for every bad input, exit status 2, no traceback of ours."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def doctor(*arguments, cwd, env=None):
    return subprocess.run([sys.executable, "-m", "gradcheck_doctor", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300,
                          env={**ENVIRONMENT, **(env or {})})


HEAD = "import torch\nfrom torch import nn\n"
SICK = HEAD + """

class Net(nn.Module):
    def __init__(self, depth=16):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(32, 32) for _ in range(depth)])
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)
"""
HEALTHY = HEAD + "model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("project")
    files = {
        "sick.py": SICK, "healthy.py": HEALTHY, "syntax.py": "def (\n", "raises.py": "raise RuntimeError('no data here')\n", "empty.py": "x = 1\n",
        "needs.py": HEAD + "class Net(nn.Module):\n    def __init__(self, width, depth):\n        super().__init__()\n        self.f = nn.Linear(width, depth)\n",
        "forward.py": HEAD + "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.f = nn.Linear(3, 2)\n"
                             "    def forward(self, x):\n        raise ValueError('broken inside')\nexample_inputs = torch.randn(4, 3)\n",
        "frozen.py": HEAD + "model = nn.Linear(3, 2).requires_grad_(False)\nexample_inputs = torch.randn(4, 3)\n",
        "nothing.py": HEAD + "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.f = nn.Linear(3, 2)\n"
                             "    def forward(self, x):\n        return 'text'\nexample_inputs = torch.randn(4, 3)\n",
        "strings.py": HEALTHY + "example_inputs = 'hello'\n", "nobatch.py": HEALTHY + "example_inputs = torch.randn(0, 8)\n",
        "nan.py": HEALTHY + "example_inputs = torch.full((32, 8), float('nan'))\n",
        "meta.py": HEAD + "model = nn.Linear(3, 2, device='meta')\n", "wrong.py": HEALTHY + "example_inputs = torch.randn(4, 5)\n",
        "trains.py": HEALTHY + "opt = torch.optim.SGD(model.parameters(), 0.1)\nfor _ in range(3):\n    model(torch.randn(4, 8)).sum().backward()\n    opt.step()\n",
        "loop.py": HEAD + "import sys\ntorch.manual_seed(0)\nmodel = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))\n"
                          "opt = torch.optim.SGD(model.parameters(), 0.1)\nfor step in range(30):\n    x = torch.randn(32, 8)\n"
                          "    loss = nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())\n    loss.backward()\n    opt.step()\n"
                          "print('LOSS', loss.item(), sys.argv[1:])\n",
        "crash.py": HEAD + "model = nn.Linear(3, 2)\nopt = torch.optim.SGD(model.parameters(), 0.1)\nfor step in range(9):\n    opt.zero_grad()\n"
                           "    model(torch.randn(4, 3)).sum().backward()\n    opt.step()\n    if step == 5:\n        raise KeyError('lost')\n",
        "none.db": "", "exits.py": "import sys\nsys.exit(3)\n",
        "parses.py": HEAD + "import argparse, sys\nparser = argparse.ArgumentParser()\nparser.add_argument('--width', type=int, default=5)\n"
                            "options = parser.parse_args()\nassert sys.argv == ['parses.py']\n\n\ndef build_model():\n"
                            "    return nn.Linear(8, parser.parse_args().width)\n",
        "suppressed.py": SICK.replace("range(depth)])", "range(depth)])  # doctor: ignore"),
        "misspelt.py": SICK.replace("range(depth)])", "range(depth)])  # doctor: ignore[GD777, dead-relu, GD2]"),
        "bad/pyproject.toml": "[tool.gradcheck-doctor]\nselct = ['GD1']\n", "bad/m.py": HEALTHY,
        "good/pyproject.toml": "[tool.gradcheck-doctor]\nfail-on = 'never'\n", "good/m.py": SICK,
    }
    for name, text in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)
    return path


BAD = {
    "missing file": (["audit", "missing.py"], "missing.py does not exist"),
    "syntax error": (["audit", "syntax.py"], "syntax.py:1: syntax error"),
    "import error": (["audit", "raises.py"], "no data here"),
    "class that needs arguments": (["audit", "needs.py"], "doctor audit 'needs.py:Net(width=..., depth=...)'"),
    "no model": (["audit", "empty.py"], "defines no model"),
    "forward raises": (["audit", "forward.py"], "broken inside"),
    "wrong shape": (["audit", "wrong.py"], "--input"),
    "all frozen": (["audit", "frozen.py"], "frozen"),
    "no tensors out": (["audit", "nothing.py"], "no floating tensor"),
    "non-tensor inputs": (["audit", "strings.py"], "no tensor"),
    "empty batch": (["audit", "nobatch.py"], "empty"),
    "NaN inputs": (["audit", "nan.py"], "the batch holds NaN"),
    "meta device": (["audit", "meta.py"], "meta device"),
    "trains at import": (["audit", "trains.py"], "doctor run trains.py"),
    "unknown rule": (["audit", "healthy.py", "--select", "GD999"], "GD999"),
    "bad spec": (["audit", "healthy.py", "--input", "floot[3]"], "floot"),
    "bad expression": (["audit", "sick.py:Net(dept=3)"], "dept"),
    "bad baseline": (["audit", "healthy.py", "--baseline", "none.json"], "--write-baseline"),
    "no such script": (["run", "missing.py"], "missing.py"),
    "bad every": (["run", "--every", "often", "loop.py"], "often"),
    "no report": (["report", "healthy.py"], "neither a JSON report nor a store"),
    "empty report": (["report", "none.db"], "neither a JSON report nor a store"),
    "table of a report": (["report", "none.db", "--output", "o.csv"], "--export o.csv"),
    "no place for the report": (["run", "--output", "none/r.json", "loop.py"], "cannot write none/r.json: No such file"),
    "no place for the baseline": (["audit", "--write-baseline", "none/b.json", "healthy.py"], "cannot write none/b.json: No such file"),
    "an option of nobody": (["run", "--bogus", "loop.py"], "no such option --bogus"),
    "unknown command": (["heal", "x"], "heal"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_clear_message_and_exit_2(name, folder):
    arguments, said = BAD[name]
    done = doctor(*arguments, cwd=folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_broken_pyproject_table_suggests_the_key(folder):
    done = doctor("audit", "m.py", cwd=folder / "bad")
    assert done.returncode == 2 and "Did you mean select" in done.stderr


def test_findings_carry_file_line_and_column(folder):
    done = doctor("audit", "sick.py", "--format", "concise", cwd=folder)
    assert done.returncode == 1
    assert done.stdout.startswith("sick.py:8:38: GD102 [error] ")


def test_configuration_and_exit_zero(folder):
    assert doctor("audit", "m.py", cwd=folder / "good").returncode == 0
    assert doctor("audit", "sick.py", "--exit-zero", cwd=folder).returncode == 0
    assert doctor("audit", "sick.py", "--fail-on", "never", cwd=folder).returncode == 0
    assert doctor("audit", "m.py", cwd=folder / "good", env={"GRADCHECK_DOCTOR_FAIL_ON": "error"}).returncode == 1


def test_healthy_file_is_quiet_and_json_says_so(folder):
    done = doctor("audit", "healthy.py", "--format", "json", cwd=folder)
    data = json.loads(done.stdout)
    assert done.returncode == 0 and data["summary"]["verdict"] == "healthy" and data["schema_version"] == 1
    assert data["probe"]["batch"].startswith("inferred")


def test_suppression_comment(folder):
    done = doctor("audit", "suppressed.py", "--format", "concise", cwd=folder)
    assert "GD102" not in done.stdout


def test_a_suppression_comment_that_names_no_rule_is_said_once(folder):
    done = doctor("audit", "misspelt.py", "--format", "concise", cwd=folder)
    assert "GD102" in done.stdout
    assert done.stderr == "doctor: misspelt.py:8: this comment ignores GD777, which no rule is called; `doctor rule` lists them\n"


def test_baseline_round_trip(folder, tmp_path):
    known = str(tmp_path / "known.json")
    assert doctor("audit", "sick.py", "--write-baseline", known, "--exit-zero", cwd=folder).returncode == 0
    assert doctor("audit", "sick.py", "--baseline", known, cwd=folder).returncode == 0


def test_a_file_that_parses_arguments_does_not_see_ours(folder):
    done = doctor("audit", "parses.py", "--format", "json", cwd=folder)
    assert done.returncode == 0 and json.loads(done.stdout)["model"]["parameters"] == 8 * 5 + 5, done.stderr


def test_several_targets_and_a_package_expression(folder):
    done = doctor("audit", "sick.py", "healthy.py", "--format", "json", cwd=folder)
    assert [r["summary"]["verdict"] for r in json.loads(done.stdout)["reports"]] == ["sick", "healthy"]
    done = doctor("audit", "torch.nn:Linear(4, 3)", cwd=folder)
    assert done.returncode == 0, done.stderr


def test_run_is_the_script_and_a_report(folder):
    plain = subprocess.run([sys.executable, "loop.py", "--epochs", "3"], cwd=folder, capture_output=True, text=True, env=ENVIRONMENT)
    done = doctor("run", "loop.py", "--epochs", "3", cwd=folder)
    assert plain.stdout == done.stdout[: len(plain.stdout)] and "['--epochs', '3']" in done.stdout
    assert done.returncode == 1 and "GD705 stale-gradient" in done.stdout


def test_run_with_a_machine_format_keeps_stdout_clean(folder):
    done = doctor("run", "--format", "json", "loop.py", cwd=folder)
    assert json.loads(done.stdout)["kind"] == "run" and "LOSS" in done.stderr


def test_run_with_output_adds_nothing_to_stdout(folder, tmp_path):
    plain = subprocess.run([sys.executable, "loop.py"], cwd=folder, capture_output=True, text=True, env=ENVIRONMENT)
    done = doctor("run", "--output", str(tmp_path / "r.json"), "loop.py", cwd=folder)
    assert done.stdout == plain.stdout
    rendered = doctor("report", str(tmp_path / "r.json"), "--format", "markdown", cwd=folder)
    assert rendered.returncode == 0 and "GD705" in rendered.stdout


def test_a_crash_of_the_script_still_gives_the_report(folder):
    done = doctor("run", "crash.py", cwd=folder)
    assert done.returncode == 2 and "KeyError: 'lost'" in done.stderr and "Linear" in done.stdout
    assert "gradcheck_doctor" not in done.stderr.split("Traceback")[1].split("KeyError")[0]


def test_exit_status_of_the_script(folder):
    assert doctor("run", "exits.py", cwd=folder).returncode == 3


def test_a_report_that_could_not_be_written_is_shown(folder):
    (folder / "made").mkdir(exist_ok=True)
    (folder / "removes.py").write_text((folder / "loop.py").read_text() + "import os\nos.rmdir('made')\n")
    done = doctor("run", "--output", "made/r.json", "removes.py", cwd=folder)
    assert done.returncode == 2 and "GD705 stale-gradient" in done.stderr and "cannot write made/r.json" in done.stderr
    assert not (folder / "none").exists()


def test_what_was_written_before_stays_when_there_is_nothing_to_write(folder):
    (folder / "old.json").write_text("old")
    assert doctor("audit", "missing.py", "--output", "old.json", cwd=folder).returncode == 2 and (folder / "old.json").read_text() == "old"
    assert doctor("audit", "missing.py", "--output", "new.json", cwd=folder).returncode == 2 and not (folder / "new.json").exists()


def test_the_first_process_of_several_speaks_for_all(folder):
    for arguments in (["run", "missing.py"], ["run", "--every", "often", "loop.py"]):
        said = [doctor(*arguments, cwd=folder, env={"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}) for rank in "01"]
        assert [done.returncode for done in said] == [2, 2] and said[0].stderr and not said[1].stderr


def test_max_steps_stops_cleanly(folder):
    done = doctor("run", "--max-steps", "4", "--format", "json", "--fail-on", "never", "loop.py", cwd=folder)
    assert done.returncode == 0 and "4 optimizer steps" in json.loads(done.stdout)["probe"]["stopped"]


def test_a_rule_page_shows_a_sick_and_a_cured_example(folder):
    done = doctor("rule", "dead-relu", cwd=folder)
    assert done.returncode == 0
    assert "## Sick\n\n```python\n" in done.stdout and "# sick: GD201" in done.stdout and "## Cured" in done.stdout
    assert {"sick.py", "healthy.py"} <= set(json.loads(doctor("rule", "GD201", "--format", "json", cwd=folder).stdout)["examples"])


def test_the_wheel_takes_the_examples_along():
    """`doctor rule` of an installed package reads them beside the rules."""
    import tomllib

    from gradcheck_doctor.rules import page

    project = tomllib.loads((Path(page.__file__).parents[2] / "pyproject.toml").read_text())
    source, = [k for k, v in project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].items() if v == "gradcheck_doctor/rules/examples"]
    assert Path(page.__file__).parents[2] / source == page.CHECKOUT and Path(page.__file__).parent / "examples" == page.PACKED
