"""stdout holds the report only, in whatever encoding, and a report that cannot be written where it should be is not lost."""
import json
import pathlib
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from test_command_line import ENVIRONMENT, HEAD, HEALTHY, SICK, doctor

TALKS = SICK.replace("class Net", "import os\nprint('AT IMPORT')\nos.system('echo a child')\n\n\nclass Net").replace(
    "        return self.head(x)", "        print('IN FORWARD')\n        return self.head(x)")
UMLAUT = SICK.replace("Net", "Größe")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("streams")
    for name, text in {"talks.py": TALKS, "sick.py": SICK, "healthy.py": HEALTHY, "größe→.py": UMLAUT}.items():
        (path / name).write_text(text, encoding="utf-8")
    return path


def test_what_the_target_prints_goes_to_stderr(folder):
    done = doctor("audit", "talks.py", "--format", "json", cwd=folder)
    assert json.loads(done.stdout)["kind"] == "audit"
    assert all(text in done.stderr for text in ("AT IMPORT", "a child", "IN FORWARD"))
    diff = doctor("fix", "talks.py", "--diff", cwd=folder)
    assert diff.stdout.startswith("--- a/talks.py") and "AT IMPORT" in diff.stderr


def raw(*arguments, cwd, **options):
    return subprocess.run([sys.executable, "-m", "gradcheck_doctor", *arguments], cwd=cwd, capture_output=True, timeout=300, **options)


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs a device that is always full, which Linux has")
@pytest.mark.parametrize("arguments", [("audit", "healthy.py"), ("rule", "dead-relu"), ("--help",)])
def test_a_full_disk_behind_stdout_is_said_in_one_line(folder, arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "gradcheck_doctor", *arguments], cwd=folder, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.splitlines()[0] == "doctor: cannot write the output: No space left on device"
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii"])
def test_text_in_an_encoding_without_block_characters(folder, encoding):
    done = raw("audit", "größe→.py", cwd=folder, env={**ENVIRONMENT, "PYTHONIOENCODING": encoding})
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    text = done.stdout.decode(encoding)
    assert "GD102" in text and "layers.15" in text and "#" in text and ("größe?.py" in text or encoding == "ascii")


@pytest.fixture(scope="module")
def kept(folder):
    assert doctor("audit", "größe→.py", "--output", "report.json", cwd=folder).returncode == 1


@pytest.mark.parametrize("name", ["json", "sarif", "gitlab", "rdjson", "junit", "html"])
def test_what_machines_read_is_valid_in_any_encoding(folder, kept, name):
    shown = [raw("report", "report.json", "--format", name, cwd=folder, env={**ENVIRONMENT, "PYTHONIOENCODING": encoding}).stdout
             for encoding in ("latin-1", "utf-8")]
    latin, utf = (text.decode() for text in shown)
    if name in ("junit", "html"):
        assert "gr&#246;&#223;e&#8594;.py" in latin
    if name == "junit":
        latin, utf = (ElementTree.tostring(ElementTree.fromstring(text)) for text in shown)
    elif name != "html":
        latin, utf = json.loads(latin), json.loads(utf)
    assert name == "html" or latin == utf


@pytest.mark.parametrize(("command", "closed", "status"), [("audit sick.py", ">&-", 1), ("audit none.py", "2>&-", 2), ("run --format json loop.py", ">&-", 0),
                                                           ("run loop.py", "<&- >&- 2>&-", 0)])
def test_closed_streams(folder, command, closed, status):
    (folder / "loop.py").write_text(HEAD + "model = nn.Linear(3, 2)\nmodel(torch.randn(4, 3)).sum().backward()\n")
    done = subprocess.run(["sh", "-c", f"{sys.executable} -m gradcheck_doctor {command} {closed}"], cwd=folder, capture_output=True, text=True,
                          timeout=300, env=ENVIRONMENT)
    assert done.returncode == status, done.stderr
    assert "AttributeError" not in done.stderr and "internal error" not in done.stderr
