"""Nothing lost: whatever a source file looks like, a fix changes the lines it means to, or says why it does not."""
import errno
import json
import linecache
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner
from records_sample import report as sample
from test_command_line import HEAD, SICK

from gradcheck_doctor.cli.fix import _say
from gradcheck_doctor.cli.main import cli
from gradcheck_doctor.cli.options import Shared
from gradcheck_doctor.config import Config
from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.patch import Patch, repaired, steps
from gradcheck_doctor.records.findings import Edit, Finding, Fix, Prescription, ReportData, Verified
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.records.sources import decoded, encoded, lines_of
from gradcheck_doctor.repair import Repair, repair
from gradcheck_doctor.report.edits import replacements
from gradcheck_doctor.treatments.tree import applied, read

LOOP = """\
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
"""
LAST = "        self.head = nn.Linear(32, 4)\n"
CURED = SICK.replace(LAST, LAST + LOOP)
BUILT = "self.layers = nn.ModuleList("
ODD = 'self.text = "é €\u2028\x0c\x1c\x85"; ' + BUILT
PLAIN = HEAD + "model = nn.Sequential(*[m for _ in range(16) for m in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 4))"
BEHIND = "\n" + "\n".join(line[8:] for line in LOOP.splitlines()).replace("self", "model")


def fix(*arguments):
    """`doctor fix` in this process, without the proof, which other tests look at: (exit status, stdout, stderr)."""
    linecache.clearcache()
    done = CliRunner().invoke(cli, ["fix", "--no-verify", *arguments], standalone_mode=False)
    if isinstance(done.exception, TreatmentRefused):
        return 2, done.stdout, str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done.return_value, done.stdout_bytes, done.stderr


STYLES = {
    "plain": lambda text: text.encode(),
    "windows line ends": lambda text: text.replace("\n", "\r\n").encode(),
    "tabs": lambda text: text.replace("    ", "\t").encode(),
    "two spaces": lambda text: text.replace("    ", "  ").encode(),
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "byte order mark and windows line ends": lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    "latin-1": lambda text: ("# -*- coding: latin-1 -*-\n" + text.replace(BUILT, 'name = "é"; ' + BUILT)).encode("latin-1"),
    "shift_jis in the second line": lambda text: ("#!/usr/bin/env python\n# vim: set fileencoding=shift_jis :\n# 学習\n" + text).encode("shift_jis"),
    "characters that str.splitlines breaks at": lambda text: text.replace(BUILT, ODD).replace("class Net", "\x0cclass Net").encode(),
    "decorated and commented": lambda text: text.replace("    def forward", "    # after\n    @torch.no_grad\n    def other(self): ...\n\n    def forward").encode(),
    "exported notebook, percent cells": lambda text: text.replace("class Net", "# %% [markdown]\n# # Title\n\n# %%\nclass Net").encode(),
    "exported notebook, nbconvert": lambda text: ("#!/usr/bin/env python\n# coding: utf-8\n\n# In[1]:\n\n\n" + text + "\n\n# In[ ]:\n\n\n\n\n").encode(),
}


@pytest.mark.parametrize("style", STYLES)
def test_only_the_meant_lines_change_and_a_second_call_changes_nothing(style, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, make = tmp_path / "net.py", STYLES[style]
    path.write_bytes(make(SICK))
    status, diff, _ = fix("net.py", "--diff")
    assert status == 1 and path.read_bytes() == make(SICK)
    assert fix("net.py")[0] == 0
    assert path.read_bytes() == make(CURED)
    compile(path.read_bytes(), "net.py", "exec")
    assert fix("net.py")[0] == 0 and path.read_bytes() == make(CURED)
    path.write_bytes(make(SICK))
    subprocess.run(["git", "apply", "--whitespace=nowarn", "-"], input=diff, check=True, env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)})
    assert path.read_bytes() == make(CURED)


@pytest.mark.parametrize("end", ["", "\r\n"])
def test_a_last_line_with_and_without_its_end(end, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.py"
    newline = end or "\n"
    path.write_bytes((PLAIN.replace("\n", newline) + end).encode())
    _, diff, _ = fix("net.py", "--diff")
    assert (b"\\ No newline at end of file" in diff) == (not end)
    assert fix("net.py")[0] == 0
    assert path.read_bytes() == ((PLAIN + BEHIND).replace("\n", newline) + end).encode()


def test_a_symbolic_link_stays_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "net.py").write_text(SICK)
    (tmp_path / "real" / "net.py").chmod(0o750)
    (tmp_path / "link.py").symlink_to("real/net.py")
    assert fix("link.py")[0] == 0
    assert (tmp_path / "link.py").is_symlink() and (tmp_path / "real" / "net.py").read_text() == CURED
    assert (tmp_path / "real" / "net.py").stat().st_mode & 0o777 == 0o750
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["link.py", "net.py"]


REFUSED = {
    "read-only": (lambda folder, path: None, "read-only"),             # as the system tells it to this user: root may write mode 444
    "outside": (lambda folder, path: path.rename(folder / "net.py"), "outside the working directory"),
    "a link that leads outside": (lambda folder, path: (path.rename(folder / "net.py"), path.symlink_to(folder / "net.py")), "outside the working directory"),
    "generated": (lambda folder, path: path.write_text("# @generated by make\n" + SICK), "generated"),
    "generated, said in the docstring": (lambda folder, path: path.write_text('"""Layers.\n\nDo not edit.\n"""\n' + SICK), "generated"),
    "carriage returns only": (lambda folder, path: path.write_bytes(SICK.replace("\n", "\r").encode()), "carriage returns"),
    "undeclared encoding": (lambda folder, path: path.write_bytes(b"# caf\xe9\n" + SICK.encode()), "cannot be read"),
    "unknown encoding": (lambda folder, path: path.write_bytes(b"# coding: klingon\n" + SICK.encode()), "klingon"),
}


def _deny(name, monkeypatch):
    if name == "read-only":
        monkeypatch.setattr(os, "access", lambda *args, **kwargs: False)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_before_anything_runs(name, tmp_path, monkeypatch):
    spoil, said = REFUSED[name]
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    path = tmp_path / "project" / "net.py"
    path.write_text(SICK)
    spoil(tmp_path, path)
    _deny(name, monkeypatch)
    file = next(p for p in (path, tmp_path / "net.py") if p.exists() or p.is_symlink())
    before = file.read_bytes()
    status, out, error = fix(os.path.relpath(file))
    assert status == 2 and said in error and not out
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["read-only", "outside", "a link that leads outside"])
def test_a_diff_is_allowed_where_a_write_is_not(name, tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    path = tmp_path / "project" / "net.py"
    path.write_text(SICK)
    REFUSED[name][0](tmp_path, path)
    _deny(name, monkeypatch)
    file = path if path.exists() else tmp_path / "net.py"
    status, diff, _ = fix(os.path.relpath(file), "--diff")
    assert status == 1 and b"+        for module in self.modules():" in diff and file.read_text() == SICK
    assert fix(os.path.relpath(file), "--check")[0] == 1


def test_a_notebook_is_refused_with_the_way_round_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.ipynb").write_text(json.dumps({"cells": [], "nbformat": 4}))
    status, _, error = fix("net.ipynb")
    assert status == 2 and "jupyter nbconvert --to script net.ipynb" in error


def test_comments_further_down_do_not_make_a_file_generated(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("# a model\nimport torch  # do not edit\n\n# do not edit the next line\nx = 1\n")
    assert read(str(path)).text == path.read_text()


def test_an_edit_that_was_made_meanwhile_is_kept(tmp_path, monkeypatch):
    """The proof takes seconds to minutes; what the user typed in them is theirs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("x = 3\n")
    with pytest.raises(TreatmentRefused, match="changed in the meantime"):
        Patch("net.py", "x = 1\n", "x = 2\n").write()
    assert (tmp_path / "net.py").read_text() == "x = 3\n"


def test_an_edit_that_the_encoding_has_no_place_for_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "# coding: latin-1\nx = 'é'\n"
    (tmp_path / "net.py").write_bytes(text.encode("latin-1"))
    with pytest.raises(TreatmentRefused, match="encoding of net.py"):
        Patch("net.py", text, text + "y = '€'\n").write()
    assert (tmp_path / "net.py").read_bytes() == text.encode("latin-1")


def test_a_full_disk_leaves_the_old_file_and_no_remains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("x = 1\n")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TreatmentRefused, match="No space left"):
        Patch("net.py", "x = 1\n", "x = 2\n").write()
    assert [p.read_text() for p in tmp_path.iterdir()] == ["x = 1\n"]


def test_what_is_ignored_or_known_is_not_touched(tmp_path, monkeypatch):
    from gradcheck_doctor.session import audit_target
    from gradcheck_doctor.targets.resolve import resolve

    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.py"
    path.write_text(SICK)
    assert fix("net.py", "--ignore", "GD")[0] == 0 and path.read_text() == SICK
    assert fix("net.py", "--select", "dead-relu", "--check")[0] == 0
    known = tmp_path / "known.json"
    known.write_text(json.dumps({"version": 1, "findings": {f.fingerprint: {} for f in audit_target(resolve("net.py")[0]).report.findings}}))
    assert fix("net.py", "--baseline", "known.json")[0] == 0 and path.read_text() == SICK
    assert fix("net.py", "--select", "init-activation-mismatch")[0] == 0 and path.read_text() == CURED


def test_a_baseline_holds_for_a_script_that_is_run_as_a_copy(tmp_path):
    """The copy has a name of its own; what is found in it is found in the file."""
    path = tmp_path / "train.py"
    path.write_text(SICK + """

torch.manual_seed(0)
model = Net()
opt = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(30):
    opt.zero_grad()
    nn.functional.cross_entropy(model(torch.randn(64, 32)), torch.randint(4, (64,))).backward()
    opt.step()
""")
    before = path.read_text()
    run = subprocess.run([sys.executable, "-m", "gradcheck_doctor", "run", "--fail-on", "never", "--write-baseline", "known.json", "train.py"], cwd=tmp_path,
                         capture_output=True, text=True, timeout=300)
    assert "GD102" in run.stdout, run.stderr
    for options, code in ((("--baseline", "known.json"), 0), ((), 1)):
        done = subprocess.run([sys.executable, "-m", "gradcheck_doctor", "fix", "--run", "--check", "--no-verify", *options, "train.py"], cwd=tmp_path,
                              capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stdout + done.stderr
    assert path.read_text() == before


def test_all_models_of_a_file_are_fixed_in_one_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.py"
    path.write_text(PLAIN + "\n" + PLAIN.splitlines()[-1].replace("model", "other") + "\n")
    assert fix("net.py")[0] == 0
    assert path.read_text() == PLAIN + BEHIND + "\n" + (PLAIN.splitlines()[-1] + BEHIND).replace("model", "other") + "\n"


def test_models_that_share_a_class_need_its_cure_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.py"
    path.write_text(SICK + "\n\none = Net()\ntwo = Net(12)\n")
    assert fix("net.py")[0] == 0 and path.read_text() == CURED + "\n\none = Net()\ntwo = Net(12)\n"


def test_every_format_tells_what_was_proven(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(SICK)
    assert fix("net.py", "--check", "--output", "report.json", "--verify")[0] == 1
    for name, said in {"text": "[safe, measured to help]", "markdown": "(measured to help)", "html": "improved"}.items():
        assert said in CliRunner().invoke(cli, ["report", "report.json", "--format", name], standalone_mode=False).stdout
    assert (tmp_path / "net.py").read_text() == SICK


KILLED = """
import os, signal, sys
from gradcheck_doctor.patch import Patch

OLD, NEW = "x = 1\\n" * 20000, "x = 2\\n" * 20000
mine = ("patch.py", "tempfile.py", "sources.py")

def dying(step):
    "Kill this process, as kill -9 does, in front of the step-th line that the write runs."
    left = [step]
    def trace(frame, event, argument):
        if not frame.f_code.co_filename.endswith(mine):
            return None
        left[0] -= event == "line"
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace
    return trace

seen, step = [], 0
while True:
    with open("net.py", "w") as file:
        file.write(OLD)
    child = os.fork()
    if not child:
        sys.settrace(dying(step))
        Patch("net.py", OLD, NEW).write()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    text = open("net.py").read()
    seen.append("old" if text == OLD else "new" if text == NEW else "half")
    if not os.WIFSIGNALED(status):
        break
    step += 1
print(" ".join(seen))
"""


def test_a_write_that_is_killed_anywhere_leaves_the_old_or_the_new_file(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    seen = done.stdout.split()
    assert len(seen) > 40, done.stderr
    assert set(seen) == {"old", "new"} and seen[-1] == "new"
    assert seen == sorted(seen, reverse=True)                 # one moment divides old from new


@pytest.mark.parametrize("text", ["a = '\u2028'\nb = 1\n", "a = 1\r\nb = 2\r\n", "\x0ca = 1\nb = '\x1c\x85'", "a\n\nb", ""])
def test_lines_are_counted_as_the_parser_counts_them(text):
    import ast

    lines = lines_of(text)
    assert "".join(lines) == text
    assert all(lines[n.lineno - 1].encode()[n.col_offset:].startswith(n.targets[0].id.encode()) for n in ast.parse(text).body if isinstance(n, ast.Assign))


def test_source_comes_back_byte_for_byte():
    for raw in (b"x = 1\n", b"\xef\xbb\xbfx = 1\r\n", b"# coding: cp1252\nx = '\x80'\n"):
        assert encoded(decoded(raw), mark=raw.startswith(b"\xef\xbb\xbf")) == raw
    with pytest.raises(ValueError, match="byte for byte"):
        decoded(b"# coding: utf-7\nx = '+AGE-'\n")               # a second spelling of 'a'


def test_a_stale_report_is_said_to_be_stale():
    with pytest.raises(TreatmentRefused, match="changed since"):
        applied("x = 1\n", [Edit(Span("net.py", 40, 1, 40, 3), "y")])


def _fix(name, *edits):
    return (Finding("GD102", "rule", "error", "m", name),
            Fix(Prescription("initialise", name, arguments={"scheme": name}), tuple(Edit(Span("copy.py", *span), text) for span, text in edits), Verified("improved")))


def test_fixes_that_build_on_each_other_are_shown_at_their_places_in_the_original():
    before = "a = 1\nb = 2\nc = 3\n"
    first = _fix("one", ((1, 1, 1, 1), "x = 0\n"), ((1, 5, 1, 6), "10"))
    second = _fix("two", ((4, 5, 4, 6), "30"))                    # line 4 of what the first one made
    repair = Repair("net.py", before, "x = 0\na = 10\nb = 2\nc = 30\n", kept=[first, second])
    assert steps(repair)[1] == (Edit(Span("net.py", 3, 5, 3, 6), "30"),)
    assert applied(before, [e for step in steps(repair) for e in step]) == repair.after


def test_fixes_that_overlap_are_shown_as_one_change():
    before = "a = 1\nb = 2\nc = 3"
    first, second = _fix("one", ((3, 5, 3, 6), "10\nd = 4")), _fix("two", ((4, 5, 4, 6), "40"))
    repair = Repair("net.py", before, "a = 1\nb = 2\nc = 10\nd = 40", kept=[first, second])
    assert [len(step) for step in steps(repair)] == [1, 0]
    assert applied(before, steps(repair)[0]) == repair.after


def test_the_report_says_what_became_of_every_fix():
    (found, kept), (_, worse) = _fix("one", ((1, 5, 1, 6), "10")), _fix("two")
    refused = Fix(worse.prescription, kept.edits, Verified("worse", {"errors": 1.0}, {"errors": 2.0}, "new: dead-relu"))
    finding = Finding("GD102", "rule", "error", "m", "one", fixes=(worse, Fix(kept.prescription, refusal="unsafe")))
    report = ReportData("net.py", "audit", {}, {}, (finding,))
    repair = Repair("net.py", "a = 1\n", "a = 10\n", kept=[(found, kept)], refused=[(found, refused)])
    first, second = repaired(report, repair).findings[0].fixes
    assert first.edits == (Edit(Span("net.py", 1, 5, 1, 6), "10"),) and first.verified.status == "improved" and not first.refusal
    assert not second.edits and second.refusal == "new: dead-relu" and second.verified.after == {"errors": 2.0}


def test_suggestions_are_whole_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "é = 1; b = 2\r\n\r\nc = 3\r\n"
    (tmp_path / "net.py").write_bytes(text.encode())
    edits = [Edit(Span("net.py", 2, 1, 2, 1), "x = 0\r\n"), Edit(Span("net.py", 1, 12, 1, 13), "20"), Edit(Span("net.py", 4, 1, 4, 1), "d = 4\r\n")]
    rows = text.split("\n")
    for part in reversed(replacements(edits)):
        rows[part.first - 1:part.last] = part.text.split("\n")
    assert "\n".join(rows) == applied(text, edits) == "é = 1; b = 20\r\nx = 0\r\n\r\nc = 3\r\nd = 4\r\n"


def test_a_cause_without_a_known_fix_is_said(tmp_path, capsys):
    path = tmp_path / "m.py"
    path.write_text("x = 1\n")
    lone = replace(sample().findings[1], severity="error")
    result = repair(replace(sample(), target=str(path), findings=(lone,)), str(path), unsafe=True, verify=False)
    assert result.unknown == [lone]
    _say([result], [], set(), False, False, True, Shared(Config(), None, None, None, False, False, False, "auto"))
    assert "no fix is known for GD301 vanishing-gradient (error); mend it by hand" in capsys.readouterr().err
