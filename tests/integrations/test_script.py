"""A script under observation is the script: its arguments, paths, module, exit, signals and every bit of its training."""
import os
import runpy
import signal
import sys
import textwrap
import threading

import pytest
import torch

from gradcheck_doctor.errors import TargetError
from gradcheck_doctor.integrations.script import run_script
from gradcheck_doctor.session import examine

HEAD = """
import sys, os, gc, torch
from torch import nn
import torch.nn.functional as F
torch.manual_seed(0)
def make():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
def batch():
    x = torch.randn(16, 8)
    return x, (x[:, 0] > 0).long()
def step(model, opt, scale=1.0):
    x, y = batch()
    opt.zero_grad()
    loss = scale * F.cross_entropy(model(x), y)
    loss.backward()
    opt.step()
    LOSSES.append(loss.item())
LOSSES = []
model = make()
opt = torch.optim.SGD(model.parameters(), 0.1)
"""
TAIL = "\nimport builtins; builtins.SEEN = (LOSSES, [p.detach().clone() for p in model.parameters()], torch.get_rng_state())\n"


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(body, name="train.py", head=HEAD, tail=""):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(head + textwrap.dedent(body) + tail)
        return name
    return write


def run(name, *arguments, **options):
    return run_script(name, None, list(arguments), **options)


def outcome():
    """What a script with TAIL left: losses, weights, random state."""
    import builtins
    return builtins.__dict__.pop("SEEN")


def same(a, b):
    return repr(a[0]) == repr(b[0]) and all(map(bits_equal, a[1], b[1])) and torch.equal(a[2], b[2])


def bits_equal(a, b):
    """Also where both are nan."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def with_and_without(name, **options):
    """Run plainly and observed; the result, after checking that training was the same bit for bit."""
    runpy.run_path(name, run_name="__main__")
    plain = outcome()
    result = run(name, every=1, **options)
    assert result.crash == "" and same(plain, outcome())
    assert not [b for b in result.recording.blind_spots if "stopped" in b.reason], result.recording.blind_spots
    return result


# -- what the script sees ---------------------------------------------------------------------------------------------------------------------
WHO = """
import builtins
builtins.WHO = {"argv": sys.argv, "path": sys.path[0], "name": __name__, "file": __file__, "package": __package__, "main": sys.modules["__main__"].__dict__ is globals()}
"""


def who():
    import builtins
    return builtins.__dict__.pop("WHO")


def test_a_script_sees_its_arguments_path_and_main(script, tmp_path):
    script(WHO, "sub/train.py")
    before = sys.argv, list(sys.path), sys.modules["__main__"]
    run("sub/train.py", "--lr", "0.1")
    assert who() == {"argv": ["sub/train.py", "--lr", "0.1"], "path": str(tmp_path / "sub"), "name": "__main__", "file": str(tmp_path / "sub" / "train.py"),
                     "package": None, "main": True}
    assert before == (sys.argv, sys.path, sys.modules["__main__"])


@pytest.mark.parametrize("module, file", [("pkg_a.train", "pkg_a/train.py"), ("pkg_b", "pkg_b/__main__.py")])
def test_a_module_sees_what_python_m_shows_it(script, tmp_path, module, file):
    script("", file.split("/")[0] + "/__init__.py", head="")
    script(WHO, file)
    run_script(None, module, ["7"])
    assert who() == {"argv": [str(tmp_path / file), "7"], "path": str(tmp_path), "name": "__main__", "file": str(tmp_path / file),
                     "package": file.split("/")[0], "main": True}


def test_a_folder_runs_its_main(script, tmp_path):
    script(WHO, "app/__main__.py")
    run("app")
    assert who()["path"] == str(tmp_path / "app")


def test_what_can_not_be_run_is_said(script):
    script("", "pkg_c/__init__.py", head="")
    for call, said in [(lambda: run("none.py"), "cannot read none.py"), (lambda: run("pkg_c"), "without a __main__.py"),
                       (lambda: run_script(None, "no_such.module", []), "No module named no_such.module"),
                       (lambda: run_script(None, "pkg_c", []), "No module named pkg_c.__main__")]:
        with pytest.raises(TargetError, match=said):
            call()


# -- how it ends ------------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("code, status", [("None", 0), ("0", 0), ("3", 3), ("'gone'", 1), ("-1", 255)])
def test_exit_status(script, code, status):
    assert run(script(f"sys.exit({code})", head="import sys\n")).status == status


def test_a_crash_shows_the_scripts_frames_only_and_keeps_what_was_seen(script):
    """Also when it raises inside an observed forward, under our function mode and hooks."""
    result = run(script("""
        class Late(nn.Module):
            def forward(self, x):
                if len(LOSSES) == 5:
                    torch.cat([x, x[:, :1]])
                return x
        model.append(Late())
        for _ in range(9):
            step(model, opt)
    """), every=1)
    assert result.status == 1 and "RuntimeError: Sizes of tensors" in result.crash and "torch.cat([x, x[:, :1]])" in result.crash
    assert "gradcheck_doctor" not in result.crash and result.recording.total_steps == 5 and result.recording.operations
    assert torch.overrides._len_torch_function_stack() == 0


def test_max_steps_gets_through_a_bare_except(script):
    name = script("""
        for _ in range(9):
            try:
                step(model, opt)
            except:
                pass
    """)
    assert run(name, max_steps=4).recording.total_steps == 9
    assert run(script("for _ in range(9):\n    step(model, opt)\n"), max_steps=4).recording.total_steps == 4


def test_a_thread_that_trains_is_waited_for(script):
    name = script("""
        import threading
        threading.Thread(target=lambda: [step(model, opt) for _ in range(5)]).start()
    """)
    assert run(name).recording.total_steps == 5


def test_termination_reports_runs_the_clean_up_and_restores_the_handler(script, capsys):
    result = run(script("""
        import signal
        try:
            for n in range(9):
                step(model, opt)
                if n == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
        finally:
            print("CLEAN")
    """))
    assert result.status == 143 and result.recording.probe["stopped"] == "terminated (SIGTERM)" and result.recording.total_steps == 4
    assert "CLEAN" in capsys.readouterr().out and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_forked_child_dies_of_sigterm_as_it_would_and_tells_no_listener(script):
    class Listener:
        steps = 0

        def step(self, monitor):
            Listener.steps += 1

        def observed(self, monitor):
            pass

        def ended(self, recording, status, merged):
            Listener.end = status, recording.total_steps
    result = run(script("""
        import signal, time
        child = os.fork()
        if child == 0:
            step(model, opt)
            time.sleep(30)
        time.sleep(0.3)
        os.kill(child, signal.SIGTERM)
        sys.exit(os.waitpid(child, 0)[1])
    """), listeners=[Listener()])
    assert result.status == signal.SIGTERM and Listener.steps == 0 and Listener.end == ("ended", 0)


def test_keyboard_interrupt_is_130(script):
    result = run(script("step(model, opt)\nraise KeyboardInterrupt\n"))
    assert (result.status, result.stopped, result.recording.total_steps) == (130, "interrupted", 1)


def test_streams_and_folder_come_back(script, tmp_path):
    before = sys.stdout, sys.stderr
    run(script("""
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir("../gone")
        sys.stdout = sys.stderr = open(os.devnull, "w")
    """))
    assert (sys.stdout, sys.stderr) == before and os.getcwd() == str(tmp_path)


# -- faults while it trains ---------------------------------------------------------------------------------------------------------------------
def test_forward_that_raises_and_is_caught(script):
    result = with_and_without(script("""
        class Flaky(nn.Module):
            calls = 0
            def forward(self, x):
                Flaky.calls += 1
                if Flaky.calls in (2, 3, 7):
                    raise ValueError("out of memory, say")
                return x
        model.insert(1, Flaky())
        for _ in range(12):
            try:
                step(model, opt)
            except ValueError:
                pass
    """, tail=TAIL))
    assert result.recording.total_steps == 9


def test_nan_loss(script):
    result = with_and_without(script("for n in range(12):\n    step(model, opt, float('nan') if n > 5 else 1.0)\n", tail=TAIL))
    assert result.recording.curve[-1][1] != result.recording.curve[-1][1]


def test_a_layer_replaced_and_unfrozen_during_training(script):
    result = with_and_without(script("""
        model[0].requires_grad_(False)
        for n in range(24):
            if n == 8:
                model[2] = nn.Linear(16, 2)
                opt = torch.optim.Adam(model.parameters(), 1e-2)
            if n == 16:
                model[0].requires_grad_(True)
            step(model, opt)
    """, tail=TAIL))
    rows = {row.step: row for row in result.recording.parameter_steps["0.weight"]}
    assert rows[20].update_ratio > 0 and [o.name for o in result.recording.optimizers] == ["SGD", "Adam"]


def test_a_model_that_is_deleted(script):
    result = with_and_without(script("""
        for n in range(6):
            step(model, opt)
        del model, opt
        gc.collect()
        model = make()
        opt = torch.optim.SGD(model.parameters(), 0.1)
        for n in range(6):
            step(model, opt)
    """, tail=TAIL))
    assert result.recording.total_steps == 12 and len(result.recording.optimizers) == 2


def test_main_thread_is_not_needed(script):
    """Signals can be handled in the main thread only; elsewhere the script still runs."""
    name, found = script("step(model, opt)\n"), []
    thread = threading.Thread(target=lambda: found.append(run(name)))
    thread.start()
    thread.join()
    assert found[0].status == 0 and found[0].recording.total_steps == 1


def test_optimizers_made_one_after_the_other_are_all_kept(script):
    """A deleted one's address is often that of the next; two take turns here, so that some follow at once and some later."""
    name = script("""
        del opt
        kept = [None, None]
        for n in range(20):
            kept[n % 2] = None
            kept[n % 2] = torch.optim.SGD(model.parameters(), 0.1 / (n + 1))
            step(model, kept[n % 2])
    """)
    assert [o.groups[0].lr for o in run(name).recording.optimizers] == [pytest.approx(0.1 / (n + 1)) for n in range(20)]


def test_settings_that_are_no_numbers(script):
    """Adafactor keeps a pair for eps, transformers' has no learning rate of its own."""
    result = run(script("""
        for kept in ({"lr": 0.1}, {"lr": None, "betas": None}):
            opt = torch.optim.Adafactor(model.parameters(), 0.1)
            opt.param_groups[0].update(kept, lr=torch.tensor(0.1))
            for n in range(3):
                step(model, opt)
            opt.param_groups[0].update(kept)
    """))
    first, second = result.recording.optimizers
    assert first.groups[0].eps is None and first.groups[0].lr == pytest.approx(0.1) and second.groups[0].betas == ()


@pytest.mark.parametrize("standardise", [
    "data = (data - data.mean(0)) / data.std(0)", "mean, spread = data.mean(0), data.std(0)\ndata = (data - mean) / (spread + 0.0)",
    "spread = data.std(0)\ndata -= data.mean(0)\ndata /= spread"])
def test_a_constant_feature_that_was_divided_by_its_spread(script, standardise, tmp_path):
    name = script("data = torch.randn(64, 8)\ndata[:, 3] = 1.0\n" + standardise + """
for n in range(20):
    opt.zero_grad()
    torch.nn.functional.mse_loss(model(data), torch.zeros(64, model(data).shape[1])).backward()
    opt.step()
""")
    found = examine(run(name).recording, name).report.findings[0]
    assert (found.code, found.severity, found.op) == ("GD801", "error", "input")
    assert (tmp_path / name).read_text().splitlines()[found.location.line - 1][found.location.column - 1:].startswith(("data.std(0)", "spread"))
