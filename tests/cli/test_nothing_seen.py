"""A run of which nothing was seen is not called healthy."""
import json

import pytest
from test_command_line import HEAD, doctor

from gradcheck_doctor.cli.stored import stored_reports
from gradcheck_doctor.records.findings import NOTHING_SEEN

CHILD = HEAD + """
import torch.multiprocessing as processes


def train(rank):
    model = nn.Linear(3, 2)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        opt.zero_grad()
        model(torch.randn(4, 3)).sum().backward()
        opt.step()


if __name__ == "__main__":
    processes.spawn(train, nprocs=1)
"""
SCRIPTS = {"plain": ("print('no torch')\n", 0), "arguments": (HEAD + "import argparse\nargparse.ArgumentParser().parse_args(['--what'])\n", 2),
           "crash": (HEAD + "model = nn.Linear(3, 2)\nmodel(torch.randn(4, 5)).sum().backward()\n", 2),
           "terminated": (HEAD + "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n", 143), "child": (CHILD, 0)}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_that_never_trained(name, tmp_path):
    text, status = SCRIPTS[name]
    (tmp_path / "train.py").write_text(text)
    done = doctor("run", "--output", "r.json", "--store", "r.db", "train.py", cwd=tmp_path)
    data = json.loads((tmp_path / "r.json").read_text())
    assert done.returncode == status, done.stderr
    assert {"module": "", "reason": NOTHING_SEEN} in data["blind_spots"] and data["summary"]["verdict"] == "healthy"
    assert stored_reports(str(tmp_path / "r.db")).reports[0].nothing_seen
    for format in ("text", "markdown", "html"):
        shown = doctor("report", "r.json", "--format", format, cwd=tmp_path).stdout
        assert "nothing observed" in shown and NOTHING_SEEN in shown and "healthy" not in shown.partition("</style>")[2 if format == "html" else 0]


def test_a_backward_without_a_step_was_seen(tmp_path):
    (tmp_path / "train.py").write_text(HEAD + "nn.Linear(3, 2)(torch.randn(4, 3)).sum().backward()\n")
    done = doctor("run", "train.py", cwd=tmp_path)
    assert done.returncode == 0 and "nothing observed" not in done.stdout
