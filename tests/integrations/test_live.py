"""The line on the terminal: drawn rarely, out of the way of the script's own output."""
import io
import sys

import torch
import torch.nn.functional as F
from torch import nn

from gradcheck_doctor.integrations.live import CLEAR, LiveLine
from gradcheck_doctor.observe.watch import Monitor
from gradcheck_doctor.session import examine


class Terminal(io.StringIO):
    def isatty(self):
        return True


def train(line, steps, each=lambda n: None):
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    opt = torch.optim.SGD(model.parameters(), 0.1)
    with Monitor(every=1, on_step=line.step, on_observed=line.observed) as monitor:
        for n in range(steps):
            x = torch.randn(16, 8)
            F.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
            opt.step()
            each(n)
    return monitor


def test_findings_are_judged_at_doublings_only():
    judged = []

    def judge(recording):
        judged.append(recording.total_steps)
        return examine(recording, "t").report
    line = LiveLine(Terminal(), judge)
    train(line, 70)
    assert judged == [8, 16, 32, 64]


def test_it_is_drawn_twice_a_second_at_most_and_never_wider_than_the_terminal(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("gradcheck_doctor.integrations.live.time.monotonic", lambda: now[0])
    line = LiveLine(Terminal(), lambda recording: examine(recording, "t" * 200).report)
    train(line, 20, lambda n: now.__setitem__(0, now[0] + 0.1))
    drawn = line.stream.getvalue().split(CLEAR)[1:]
    assert len(drawn) == 4 and all(len(text) < 80 for text in drawn)
    assert drawn[0].startswith("doctor: watching | step 1 | loss 0.") and "GD705 stale-gradient" in drawn[-1]


def test_it_vanishes_before_the_script_writes_and_waits_for_its_line_to_end(monkeypatch):
    monkeypatch.setattr("gradcheck_doctor.integrations.live.SECONDS", 0.0)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    line = LiveLine(terminal, lambda recording: examine(recording, "t").report)

    def write(n):
        if n == 1:
            print("half ", end="")
        if n == 3:
            print("line", file=sys.stderr)
    with line.beside_the_script():
        train(line, 6, write)
    screen = terminal.getvalue()
    assert sys.stdout is terminal and CLEAR + "half line\n" in screen and screen.endswith(CLEAR)
    assert screen.count("doctor:") == 4, "none while the script's own line is unfinished"


def test_streams_that_are_no_terminal_stay_the_scripts_own(monkeypatch):
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stdout", plain)
    with LiveLine(Terminal(), lambda recording: None).beside_the_script():
        assert sys.stdout is plain
