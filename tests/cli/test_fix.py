"""doctor fix on real scripts: the file that comes out trains, a second call changes nothing."""
import os
import signal
import subprocess
import sys
import time

import pytest
from test_command_line import ENVIRONMENT, HEAD, SICK, doctor

LOOP = """
torch.manual_seed(0)
x = torch.randn(512, 8)
y = (x[:, 0] * x[:, 1] > 0).long()
{model}
opt = torch.optim.SGD(model.parameters(), lr={lr}, momentum=0.9)
for step in range(240):
    i = torch.arange(64) + 64 * (step % 8)
    {zero}
    loss = nn.functional.cross_entropy(model(x[i]), y[i])
    loss.backward()
    opt.step()
"""
MODEL = "model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2){end})"
SCRIPTS = {
    "zero_grad": (LOOP.format(model=MODEL.format(end=""), lr=0.05, zero="pass"), "opt.zero_grad()"),
    "learning rate": (LOOP.format(model=MODEL.format(end=""), lr=50.0, zero="opt.zero_grad()"), "lr=0."),
    "a fault in two places": (LOOP.format(model="model = nn.Sequential(nn.Linear(8, 32), nn.Softmax(1), nn.Linear(32, 32), nn.Softmax(1), nn.Linear(32, 2))",
                                          lr=0.3, zero="opt.zero_grad()"), "(2 findings at once)"),
    "deep": (LOOP.format(model="model = nn.Sequential(*[m for k in range(16) for m in (nn.Linear(8 if k == 0 else 32, 32), nn.ReLU())], nn.Linear(32, 2))",
                         lr=0.02, zero="opt.zero_grad()"), "kaiming_normal_"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_sick_script_is_cured_and_stays_so(name, tmp_path):
    text, expected = SCRIPTS[name]
    path = tmp_path / "train.py"
    path.write_text(HEAD + text)
    dry = doctor("fix", "train.py", "--run", "--unsafe-fixes", "--check", cwd=tmp_path)
    assert dry.returncode == 1 and path.read_text() == HEAD + text, dry.stderr
    done = doctor("fix", "train.py", "--run", "--unsafe-fixes", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    cured = path.read_text()
    assert expected in cured + done.stdout and "improved" in done.stdout
    assert sorted(p.name for p in tmp_path.glob("*.py")) == ["train.py"]
    again = doctor("fix", "train.py", "--run", "--unsafe-fixes", cwd=tmp_path)
    assert again.returncode == 0 and path.read_text() == cured, again.stdout + again.stderr


def test_an_audited_model_is_cured_by_a_safe_fix(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(SICK)
    diff = doctor("fix", "net.py", "--diff", cwd=tmp_path)
    assert diff.returncode == 1 and "+        for module in self.modules():" in diff.stdout and path.read_text() == SICK
    assert doctor("fix", "net.py", cwd=tmp_path).returncode == 0
    assert doctor("audit", "net.py", cwd=tmp_path).returncode == 0
    assert doctor("fix", "net.py", "--check", cwd=tmp_path).returncode == 0


MASKED = HEAD + """

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*[m for k in range(14) for m in (nn.Linear(64 if k else 10, 64), nn.ReLU())])
        self.out = nn.Linear(64, 3)

    def forward(self, x, mask):
        assert mask.dtype == torch.bool
        return self.out(self.layers(x * mask))
"""


def test_an_edit_is_measured_with_the_batch_that_the_finding_came_from(tmp_path):
    """No batch can be inferred for this model: the proof takes the one that the audit was given, by the report or on the command line."""
    path = tmp_path / "net.py"
    path.write_text(MASKED)
    batch = ("--batch", "(torch.randn(32, 10), torch.rand(32, 10) > 0.2)", "--seed", "3")
    assert doctor("fix", "net.py", "--check", cwd=tmp_path).returncode == 2
    found = doctor("audit", "net.py", *batch, "-o", "report.json", cwd=tmp_path)
    assert found.returncode == 1, found.stderr
    for call in (("--from", "report.json"), ("net.py", *batch)):
        diff = doctor("fix", *call, "--diff", cwd=tmp_path)
        assert diff.returncode == 1 and "kaiming_normal_" in diff.stdout and "improved" in diff.stderr, diff.stderr
        assert "BatchNorm" not in diff.stdout                        # unsafe: not even where the report holds its edit
    assert doctor("fix", "--from", "report.json", cwd=tmp_path).returncode == 0 and "kaiming_normal_" in path.read_text()
    assert doctor("audit", "net.py", *batch, cwd=tmp_path).returncode == 0


def test_bad_calls(tmp_path):
    assert doctor("fix", cwd=tmp_path).returncode == 2
    done = doctor("fix", "--from", "none.json", cwd=tmp_path)
    assert done.returncode == 2 and "none.json" in done.stderr


@pytest.mark.parametrize("record", ["r.db", "r.json"])
def test_a_script_that_changed_since_its_run_is_said_to_have_changed(record, tmp_path):
    path = tmp_path / "train.py"
    path.write_text(HEAD + SCRIPTS["zero_grad"][0])
    doctor("run", *("--store", record)[: 2 * record.endswith("db")], "--output", "r.json", "train.py", cwd=tmp_path)
    first = doctor("fix", "--from", record, "--no-verify", "--unsafe-fixes", cwd=tmp_path)
    assert "opt.zero_grad()" in path.read_text() and "changed since" not in first.stderr
    again = doctor("fix", "--from", record, "--no-verify", "--unsafe-fixes", cwd=tmp_path)
    assert "train.py changed since this run: run it again" in again.stderr and "stand there already" not in again.stderr
    path.write_text("x = 1\n")
    for options in ((), ("--check",), ("--diff",)):
        assert doctor("fix", "--from", record, "--no-verify", *options, cwd=tmp_path).returncode == 2           # nothing can be said of this text


def test_without_proof_every_cause_is_cured_at_once(tmp_path):
    """A second call has nothing to do."""
    path = tmp_path / "net.py"
    path.write_text(SICK + """

model = nn.Sequential(Net(), nn.Softmax(1))
example_inputs = torch.randn(64, 32), torch.randint(4, (64,))
loss_fn = nn.CrossEntropyLoss()
""")
    done = doctor("fix", "net.py:model", "--no-verify", "--unsafe-fixes", cwd=tmp_path)
    assert "fixed GD601" in done.stdout and "fixed GD102" in done.stdout, done.stdout + done.stderr
    cured = path.read_text()
    again = doctor("fix", "net.py:model", "--no-verify", "--unsafe-fixes", cwd=tmp_path)
    assert path.read_text() == cured, again.stdout


def test_why_a_script_failed_is_said(tmp_path):
    (tmp_path / "train.py").write_text(HEAD + LEFT)
    done = doctor("fix", "--run", "--no-verify", "train.py", cwd=tmp_path)
    assert done.returncode == 0 and "fixed GD102" in done.stdout, done.stdout + done.stderr
    failed = doctor("fix", "--run", "train.py", "--", "--crash", cwd=tmp_path)
    assert failed.returncode == 2 and "ValueError: no such data" in failed.stderr and "try: doctor run train.py" in failed.stderr


LEFT = """
import sys
if "--crash" in sys.argv:
    raise ValueError("no such data")
""" + SCRIPTS["deep"][0]
SLEEPS = """
import os, time
with open("pid.tmp", "w") as file:
    file.write(str(os.getpid()))
os.rename("pid.tmp", "pid")
time.sleep(100)
"""


def test_sigterm_leaves_neither_a_file_nor_a_process(tmp_path):
    (tmp_path / "train.py").write_text(SLEEPS)
    process = subprocess.Popen([sys.executable, "-m", "gradcheck_doctor", "fix", "--run", "train.py"], cwd=tmp_path, env=ENVIRONMENT)
    while not (tmp_path / "pid").exists():
        assert process.poll() is None
        time.sleep(0.1)
    assert list(tmp_path.glob("doctor_train_*.py"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pid", "train.py"]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
