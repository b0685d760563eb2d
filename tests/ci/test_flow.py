"""The whole way through CI, without a server: a repository with a sick model, the action's own steps, the GitLab job and the hooks as they stand."""
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from test_command_line import HEAD, HEALTHY, SICK

from gradcheck_doctor.cli.main import cli
from gradcheck_doctor.records.codec import from_json

ROOT = Path(__file__).parent.parent.parent
ACTION = ROOT / "plugins" / "github-action"
NEEDS = HEAD + "class Part(nn.Module):\n    def __init__(self, width):\n        super().__init__()\n        self.f = nn.Linear(width, width)\n"
FILES = {"models/net.py": SICK, "models/ok.py": HEALTHY, "models/part.py": NEEDS, "tools/plain.py": "raise RuntimeError('never imported')\n"}


def git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def repository(folder):
    """A repository with a sick model, and a bare one that it pushes to."""
    project, origin = folder / "project", folder / "origin.git"
    for name, text in FILES.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    git(folder, "init", "--quiet", "--bare", str(origin))
    git(project, "init", "--quiet", "--initial-branch", "feature")
    git(project, "add", ".")
    git(project, "-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "--quiet", "-m", "A model")
    git(project, "remote", "add", "origin", str(origin))
    git(project, "push", "--quiet", "origin", "feature")
    return project


class Job:
    """Runs steps of the action as a runner does: inputs in the environment, outputs and summary in files."""

    def __init__(self, project, scratch):
        self.project, self.scratch = project, scratch
        self.files = {name: scratch / name.lower() for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        for path in self.files.values():
            path.touch()

    def step(self, script, **inputs):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "DOCTOR_PYTHON": sys.executable,
                       "RUNNER_TEMP": str(self.scratch), **{k: str(v) for k, v in self.files.items()}, **inputs}
        return subprocess.run(["bash", str(ACTION / script)], cwd=self.project, env=environment, capture_output=True, text=True, timeout=300)

    @property
    def outputs(self):
        return dict(line.split("=", 1) for line in self.files["GITHUB_OUTPUT"].read_text().splitlines())


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """(job, what each step printed): audit, suggestions, a commit of the fixes, another audit."""
    folder = tmp_path_factory.mktemp("flow")
    job = Job(repository(folder), folder)
    done = {"audit": job.step("audit.sh", DOCTOR_TARGETS="models\n")}
    assert done["audit"].returncode == 0, done["audit"].stderr
    done["outputs"], report = job.outputs, job.outputs["report"]
    done["findings"] = json.loads(Path(report).read_text())
    done["suggest"] = job.step("fix.sh", DOCTOR_FIX="suggest", DOCTOR_REPORT=report)
    assert done["suggest"].returncode == 0, done["suggest"].stderr
    done["untouched"] = git(job.project, "status", "--porcelain")
    (job.project / "tools" / "plain.py").write_text("mine = 1\n")
    done["commit"] = job.step("fix.sh", DOCTOR_FIX="commit", DOCTOR_REPORT=report, DOCTOR_MESSAGE="Cure")
    assert done["commit"].returncode == 0, done["commit"].stdout + done["commit"].stderr
    done["committed"] = job.outputs
    return job, done


def test_findings_are_annotated_at_their_lines(flow):
    job, done = flow
    lines = done["audit"].stdout.splitlines()
    assert any(re.match(r"::error title=GD102 init-activation-mismatch,file=models/net\.py,line=8,col=38,endLine=8,endColumn=55::", line) for line in lines)
    assert all(re.match(r"::(error|warning|notice) ", line) for line in lines)
    assert "| error | `GD102` init-activation-mismatch |" in job.files["GITHUB_STEP_SUMMARY"].read_text()
    assert done["outputs"]["status"] == "1" and int(done["outputs"]["findings"]) >= 1


def test_sarif_is_valid_and_carries_the_edit(flow):
    sarif_pydantic = pytest.importorskip("sarif_pydantic")
    text = Path(flow[1]["outputs"]["sarif"]).read_text()
    sarif_pydantic.Sarif.model_validate(json.loads(text))
    run, = json.loads(text)["runs"]
    result = next(r for r in run["results"] if r["ruleId"] == "GD102")
    assert result["locations"][0]["physicalLocation"] == {"artifactLocation": {"uri": "models/net.py"},
                                                          "region": {"startLine": 8, "startColumn": 38, "endLine": 8, "endColumn": 55}}
    change, = result["fixes"][0]["artifactChanges"]
    assert change["artifactLocation"]["uri"] == "models/net.py"
    assert "kaiming_normal_" in change["replacements"][0]["insertedContent"]["text"]
    rule = run["tool"]["driver"]["rules"][result["ruleIndex"]]
    assert rule["id"] == "GD102" and len(rule["help"]["text"]) > 100


def test_suggestions_are_the_patch(flow):
    """reviewdog takes one suggestion a diagnostic, on whole lines; taken together they are what the diff does."""
    job, done = flow
    data = json.loads(Path(job.scratch / "gradcheck-doctor" / "suggestions.json").read_text())
    parts = [s for d in data["diagnostics"] for s in d.get("suggestions", ())]
    assert parts and all(len(d.get("suggestions", ())) <= 1 for d in data["diagnostics"])
    assert all(set(p["range"]["start"]) == set(p["range"]["end"]) == {"line"} for p in parts)
    rows = SICK.split("\n")
    for part in sorted(parts, key=lambda p: -p["range"]["start"]["line"]):
        rows[part["range"]["start"]["line"] - 1:part["range"]["end"]["line"]] = part["text"].split("\n")
    assert "\n".join(rows) == (job.project / "models" / "net.py").read_text()
    patch = (job.scratch / "gradcheck-doctor" / "fixes.diff").read_text()
    assert patch.startswith("--- a/models/net.py\n+++ b/models/net.py\n")
    assert done["untouched"] == ""


def test_the_report_of_a_fix_follows_the_schema_and_has_the_proof(flow):
    import jsonschema

    job, done = flow
    data = json.loads((job.scratch / "gradcheck-doctor" / "fixes.json").read_text())
    schema = json.loads((ROOT / "gradcheck_doctor" / "report" / "schema.json").read_text())
    jsonschema.validate(data, schema)
    for fix in (x for f in from_json(data).findings for x in f.fixes):
        assert bool(fix.edits) == (fix.verified.status == "improved")
        assert not fix.edits or fix.verified.after["errors"] < fix.verified.before["errors"]


def test_commit_mode_commits_the_fixed_file_and_nothing_else(flow):
    job, done = flow
    assert git(job.project, "log", "-1", "--format=%s") == "Cure"
    assert git(job.project, "show", "--name-only", "--format=", "HEAD") == "models/net.py"
    assert git(job.project, "status", "--porcelain") == "M tools/plain.py"
    assert git(job.project, "rev-parse", "origin/feature") == git(job.project, "rev-parse", "HEAD")
    assert done["committed"]["status"] == "0" and int(done["committed"]["fixed"]) >= 1
    assert "kaiming_normal_" in git(job.project, "show", "origin/feature:models/net.py")


def test_a_second_round_finds_nothing_and_commits_nothing(flow):
    job, _ = flow
    head = git(job.project, "rev-parse", "HEAD")
    assert job.step("audit.sh", DOCTOR_TARGETS="models").returncode == 0
    assert job.outputs["status"] == "0" and job.outputs["findings"] == "0"
    done = job.step("fix.sh", DOCTOR_FIX="commit", DOCTOR_REPORT=job.outputs["report"])
    assert done.returncode == 0 and "nothing to commit" in done.stdout
    assert git(job.project, "rev-parse", "HEAD") == head


def test_steps_that_cannot_do_their_work_say_so(tmp_path):
    project = repository(tmp_path)
    job = Job(project, tmp_path)
    done = job.step("audit.sh", DOCTOR_TARGETS="tools/missing.py")
    assert done.returncode == 2 and "::error title=gradcheck-doctor::" in done.stdout and "does not exist" in done.stderr
    git(project, "checkout", "--quiet", "--detach")
    done = job.step("fix.sh", DOCTOR_FIX="commit", DOCTOR_REPORT="none.json")
    assert done.returncode == 2 and "no branch is checked out" in done.stdout
    done = job.step("fix.sh", DOCTOR_FIX="pray", DOCTOR_REPORT="none.json")
    assert done.returncode == 2 and "none, suggest or commit" in done.stdout


def test_the_gitlab_job_of_the_documentation_runs(tmp_path):
    job = next(b for b in map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "ci.md").read_text(), re.S)) if "doctor" in b)["doctor"]
    project, tools = repository(tmp_path), tmp_path / "bin"
    tools.mkdir()
    (tools / "doctor").write_text(f'#!/bin/sh\nexec {sys.executable} -m gradcheck_doctor "$@"\n')
    (tools / "doctor").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **job["variables"], "OMP_NUM_THREADS": "1", "MODELS": "models"}
    done = subprocess.run(["bash", "-e", "-c", "\n".join(job["script"])], cwd=project, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    rows = json.loads((project / job["artifacts"]["reports"]["codequality"]).read_text())
    assert rows[0]["location"] == {"path": "models/net.py", "lines": {"begin": 8}} and rows[0]["severity"] == "major"
    assert len({r["fingerprint"] for r in rows}) == len(rows)
    assert (project / job["artifacts"]["reports"]["junit"]).read_text().startswith("<?xml")
    git(project, "apply", "fixes.diff")
    assert git(project, "diff", "--name-only") == "models/net.py"


def test_the_hooks_pass_over_what_they_cannot_judge(tmp_path, monkeypatch):
    """A hook gets every changed file; only those with models that can be built are its business, others are not even imported."""
    hooks = {h["id"]: shlex.split(h["entry"])[1:] for h in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}
    project = repository(tmp_path)
    monkeypatch.chdir(project)
    done = CliRunner().invoke(cli, [*hooks["doctor-audit"], *FILES], standalone_mode=False)
    assert done.return_value == 1 and "GD102" in done.stdout, done.stderr
    assert "passed over models/part.py" in done.stderr and "plain" not in done.stderr
    done = CliRunner().invoke(cli, [*hooks["doctor-fix"], "--no-verify", *FILES], standalone_mode=False)
    assert done.return_value == 0 and git(project, "diff", "--name-only") == "models/net.py"
    done = CliRunner().invoke(cli, [*hooks["doctor-audit"], "models/part.py", "tools/plain.py"], standalone_mode=False)
    assert done.return_value == 0
