"""doctor run in real processes: signals, kill -9, a full disk, worker processes, a terminal."""
import json
import os
import pty
import resource
import select
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from test_command_line import ENVIRONMENT, doctor

from gradcheck_doctor.cli.stored import stored_reports
from gradcheck_doctor.store.reader import read

FOREVER = """
import sys, time, torch
from torch import nn
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
opt = torch.optim.SGD(model.parameters(), 0.1)
for n in range(int(sys.argv[1])):
    x = torch.randn(16, 8)
    loss = nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
    loss.backward()
    opt.step()
    print("STEP", n, flush=True)
    time.sleep(float(sys.argv[2]))
"""
WORKERS = """
import argparse, os, sys
import torch
from torch import nn


class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        return torch.full((4,), float(index)), index % 2


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--start", required=True)
    options = parser.parse_args()
    os.chdir(os.path.dirname(sys.executable))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    opt = torch.optim.SGD(model.parameters(), 1e-3)
    for x, y in torch.utils.data.DataLoader(Squares(), 8, num_workers=2, multiprocessing_context=options.start):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        print("LOSS", loss.item(), flush=True)
    os.system("echo from a child")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    (path / "forever.py").write_text(FOREVER)
    (path / "workers.py").write_text(WORKERS)
    return path


def interruptible():
    """A shell that starts this suite in the background has SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def started(folder, *options, until="STEP 12", preexec=interruptible, stderr=subprocess.PIPE):
    """A run that has trained for a while."""
    process = subprocess.Popen([sys.executable, "-m", "gradcheck_doctor", "run", *options, "forever.py", "100000", "0.01"], cwd=folder, text=True,
                               stdout=subprocess.PIPE, stderr=stderr, env=ENVIRONMENT, preexec_fn=preexec)
    for line in process.stdout:
        if line.strip() == until:
            return process
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize("number, status, said", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")], ids=["ctrl-c", "sigterm"])
def test_a_signal_gives_the_report(folder, number, status, said):
    """The status is 1 with findings, else that of the signal; stale gradients are a finding, left out here."""
    process = started(folder, "--ignore", "ALL" if number == signal.SIGTERM else "GD9")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert said in out and "Sequential, 178 parameters" in out and "Traceback" not in err
    assert process.returncode == (status if "GD705" not in out else 1)
    assert ("GD705" in out) == (number == signal.SIGINT)


def test_ctrl_c_before_the_training_is_130(folder):
    (folder / "slow" / "torch").mkdir(parents=True)
    (folder / "slow" / "torch" / "__init__.py").write_text("import time\nprint('LOADING', flush=True)\ntime.sleep(60)\n")
    path = os.pathsep.join([str(folder / "slow"), ENVIRONMENT.get("PYTHONPATH", "")])
    process = subprocess.Popen([sys.executable, "-m", "gradcheck_doctor", "run", "forever.py", "1", "0"], cwd=folder, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env={**ENVIRONMENT, "PYTHONPATH": path}, preexec_fn=interruptible)
    assert process.stdout.readline() == "LOADING\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].strip() == "doctor: interrupted" and process.returncode == 130


def test_ctrl_c_while_the_report_is_made_is_130(folder):
    code = ("import os, signal, gradcheck_doctor.session as session; from gradcheck_doctor.cli.main import main\n"
            "session.examine = lambda *_: os.kill(os.getpid(), signal.SIGINT)\nmain(['run', 'forever.py', '2', '0'])")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120, env=ENVIRONMENT, preexec_fn=interruptible)
    assert done.returncode == 130 and "doctor: interrupted" in done.stderr and "Traceback" not in done.stderr


def test_killed_with_9_the_store_has_all_but_the_last_step(folder):
    process = started(folder, "--store", "killed.db", "--every", "1", until="STEP 30")
    process.kill()
    shown = [line for line in process.communicate(timeout=60)[0].splitlines() if line.startswith("STEP")]
    last = int(shown[-1].split()[1]) if shown else 30
    recording = read(str(folder / "killed.db")).recording
    assert last - 1 <= recording.operations[-1].observed[-1].step <= last + 1
    done = doctor("report", "killed.db", cwd=folder)
    assert done.returncode == 0 and "GD705 stale-gradient" in done.stdout and "killed" in done.stdout


def test_a_full_disk_is_said_once_and_the_script_trains_on(folder):
    """No file of the process may grow past 60 kB: the store's does."""
    process = started(folder, "--store", "full.db", "--every", "1", "--max-steps", "40", until="STEP 38",
                      preexec=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)))
    out, err = process.communicate(timeout=60)
    assert err.count("doctor:") == 1 and "training goes on without it" in err
    assert process.returncode == 1 and "GD705" in out


def test_store_then_report_fix_and_export_find_the_same(folder):
    done = doctor("run", "--store", "run.db", "--format", "json", "forever.py", "20", "0", cwd=folder)
    live = json.loads(done.stdout)
    stored = stored_reports(str(folder / "run.db"))
    assert [f["fingerprint"] for f in live["findings"]] == [f.fingerprint for f in stored.reports[0].findings]
    assert stored.arguments == ("20", "0") and "STEP 19" in done.stderr
    assert doctor("report", "run.db", "--export", "run.csv", cwd=folder).returncode == 0
    assert (folder / "run.csv").read_text().startswith("step,kind,name,")
    fixed = doctor("fix", "--from", "run.db", "--no-verify", "--unsafe-fixes", "--diff", cwd=folder)
    assert fixed.returncode == 1 and "+    opt.zero_grad()" in fixed.stdout


def test_files_that_are_no_store_get_one_message(folder):
    sqlite3.connect(folder / "other.db").executescript("CREATE TABLE t (x)")
    for arguments in (["report", "other.db"], ["run", "--store", "other.db", "forever.py", "1", "0"], ["fix", "--from", "other.db"]):
        done = doctor(*arguments, cwd=folder)
        assert done.returncode == 2 and "other.db" in done.stderr and "Traceback" not in done.stderr and done.stdout == ""


def test_worker_processes_find_the_script_as_main(folder):
    """Spawned workers import the script again and unpickle its classes; forked ones inherit them. The losses are those of the plain script."""
    plain = subprocess.run([sys.executable, "workers.py", "--start", "fork"], cwd=folder, capture_output=True, text=True, env=ENVIRONMENT).stdout
    assert plain.count("LOSS") == 4
    spawned = doctor("run", "--output", str(folder / "w.json"), "workers.py", "--start", "spawn", cwd=folder)
    assert spawned.stdout == plain, spawned.stderr
    forked = doctor("run", "--format", "json", "workers.py", "--start", "fork", cwd=folder)
    assert json.loads(forked.stdout)["kind"] == "run" and forked.stderr == plain, "what child processes print goes to stderr, too"


def on_a_terminal(folder, *options, steps="24"):
    """What `doctor run` writes to a terminal on stderr, its stdout being a file."""
    ours, theirs = pty.openpty()
    with open(folder / "out.txt", "w") as out:
        process = subprocess.Popen([sys.executable, "-m", "gradcheck_doctor", "run", *options, "forever.py", steps, "0.1"], cwd=folder, stdout=out,
                                   stderr=theirs, env=ENVIRONMENT)
    os.close(theirs)
    text, end = b"", time.monotonic() + 100
    while time.monotonic() < end and (select.select([ours], [], [], 0.2)[0] or process.poll() is None):
        try:
            text += os.read(ours, 4096) if select.select([ours], [], [], 0)[0] else b""
        except OSError:
            break
    os.close(ours)
    process.wait(timeout=30)
    return text.decode()


def test_the_live_line_says_health_step_loss_and_worst_finding_and_goes(folder):
    text = on_a_terminal(folder)
    drawn = [part for part in text.split("\r") if "doctor: " in part]
    assert 2 <= len(drawn) <= 10 and "\n" not in text
    assert all("step" in part and "loss" in part for part in drawn) and "GD705 stale-gradient" in drawn[-1] and "sick" in drawn[-1] + "watch"
    assert text.endswith("\r\x1b[K")


def test_no_live_line_when_quiet_or_without_a_terminal(folder):
    assert on_a_terminal(folder, "--quiet", steps="9") == ""
    assert doctor("run", "--max-steps", "3", "forever.py", "9", "0", cwd=folder).stderr == ""


def test_the_collector_works_as_ever_in_the_script_and_leaves_what_was_loaded_before_alone(folder):
    (folder / "cycles.py").write_text("""
import gc, weakref
import torch

class Node: pass

loaded, model, node = gc.get_freeze_count(), torch.nn.Linear(2, 2), Node()
node.itself, gone = node, weakref.ref(node)
del node
for _ in range(3000):
    [[]].append([])
kept = [[] for _ in range(3000)]
print("ENABLED", gc.isenabled(), "FREED", gone() is None, "LOADED", loaded > 50_000, "MODEL", any(o is model for o in gc.get_objects()))
""")
    done = doctor("run", "cycles.py", cwd=folder)
    assert "ENABLED True FREED True LOADED True MODEL True" in done.stdout, done.stderr


def test_a_process_that_has_torch_already_is_left_alone(folder):
    code = ("import gc, torch; from click.testing import CliRunner; from gradcheck_doctor.cli.main import cli; "
            "print(CliRunner().invoke(cli, ['run', 'workers.py', '--start', 'fork']).exit_code, gc.isenabled(), gc.get_freeze_count())")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert done.stdout.endswith("True 0\n"), done.stderr
