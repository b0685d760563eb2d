"""The figures of the report, one function a table: each returns a title, a header and rows of text."""
from __future__ import annotations

import inspect
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from tests.benchmarks.models import Workload
from tests.benchmarks.ours import Doctor, Idle, Later, alone
from tests.benchmarks.peers import available
from tests.benchmarks.protocol import Run, Tool, attributed, interleave, ratio

SLOW_SECONDS = 0.2     # a step longer than this gets fewer rounds
SCRIPT = """
import torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
optimizer = torch.optim.Adam(model.parameters())
for _ in range(20):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(torch.randn(16, 32)), torch.randint(0, 4, (16,))).backward()
    optimizer.step()
"""


class Table(NamedTuple):
    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


class Control(Tool):
    name = "bare again (A/A control)"


def rounds_for(workload: Workload, quick: bool) -> int:
    """At least 30 rounds, 10 for steps over 0.2 s; --quick a third of that."""
    base = interleave(workload, [Tool()], rounds=2, warm=1)[0]
    full = 30 if statistics.median(base.cpu) < SLOW_SECONDS else 10
    return max(4, full // 3) if quick else full


def steps(workload: Workload, quick: bool) -> Table:
    """One observed step of each tool against the bare step."""
    rounds = rounds_for(workload, quick)
    ours = [Later(1, "doctor, every=1 past 64 observed steps"), Later(1, "doctor, full step", full=True), Doctor(1, "doctor, exact step", exact=True), Idle()]
    runs = interleave(workload, [Tool(), Control(), *ours, *available()], rounds)
    base = runs[0]
    rows = [(run.tool.name, str(ratio(run.cpu, base.cpu)), str(ratio(run.wall, base.wall)), *_attributed(run, base)) for run in runs[1:]]
    title = (f"{workload.size}: {statistics.median(base.cpu) * 1e3:.0f} ms of CPU time bare, {rounds} rounds; losses and weights bitwise equal in all "
             f"{len(runs)} runs")
    return Table(title, ("variant", "CPU time / bare", "wall / bare", "attributed", "mean of that"), rows)


def _attributed(run: Run, base: Run) -> tuple[str, str]:
    found = attributed(run, base)
    seconds = [s for s in run.inside if s is not None]
    return ("", "") if found is None else (str(found), f"{1 + statistics.mean(seconds) / statistics.median(base.wall):.3f}")


def amortised(workload: Workload, quick: bool) -> Table:
    """Time in our callbacks over a stretch of steps, divided by the rest of the time of these same steps; `every=50` from the steps of `every=10`."""
    length = 40 if quick else 80
    inside, observed, usual = alone(workload, 1, length)
    rows = [("every=1, past the first 64 observed", f"{length}", f"{sum(observed)}", _over(inside, usual))]
    inside, observed, usual = alone(workload, 10, length)
    full, idle = [[s for s, seen in zip(inside, observed, strict=True) if seen is wanted] for wanted in (True, False)]
    fifty = [statistics.mean(full), *[statistics.mean(idle)] * 49]
    rows += [("every=10, past the first 64 observed", f"{length}", f"{len(full)}", _over(inside, usual)),
             ("of these the observed steps", f"{len(full)}", f"{len(full)}", _over(full, usual)),
             ("of these the idle steps", f"{len(idle)}", "0", _over(idle, usual)),
             ("every=50, from these", "", "", _over(fifty, usual))]
    inside, observed, usual = alone(workload, "auto", 40 if quick else 100)
    rows += [("every=auto, from the first step", f"{len(inside)}", f"{sum(observed)}", _over(inside, usual)),
             ("of these the first", "1", "1", f"{inside[0] * 1e3:.0f} ms")]
    return Table(workload.size, ("schedule", "steps", "observed", "attributed, amortised"), rows)


def _over(seconds: list[float], usual: float) -> str:
    """A step with the mean of `seconds` in our callbacks over one without."""
    return f"{1 + statistics.mean(seconds) / usual:.4f}"


def memory(workload: Workload) -> Table:
    """What one watch keeps beside the model after ten observed steps."""
    run = interleave(workload, [Doctor(1)], rounds=9, warm=1)[0]
    observer = run.tool.monitor.observer
    blocks = [b for group in observer.collector._groups.values() for b in group.blocks]
    units = [t for node in observer.graph.nodes if node.activity is not None for t in _held(node.activity)]
    numbers = (f"{sum(p.numel() for p in run.model.parameters()) * 4 / 1e6:.2f}", f"{sum(b.numel() for b in blocks) * 4 / 1e6:.2f}",
               f"{sum(len(b) for b in blocks)}", f"{sum(t.numel() * t.element_size() for t in units) / 1e6:.2f}")
    return Table(workload.size, ("parameters, MB", "sample buffers, MB", "rows", "activity of units, MB"), [numbers])


def _held(activity: object) -> list[torch.Tensor]:
    seen = activity.extremes()
    return [value for entry in seen if entry is not None for value in entry if isinstance(value, torch.Tensor)]


def start_up(quick: bool) -> Table:
    """CPU seconds (user and system) of whole processes, least of several."""
    repeats = 3 if quick else 7
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "train.py"
        script.write_text(SCRIPT)
        nothing = Path(folder) / "nothing.py"
        nothing.write_text("import torch\n")
        commands = {"python -c pass": ["-c", "pass"], "doctor --help": ["-m", "gradcheck_doctor", "--help"], "doctor rule": ["-m", "gradcheck_doctor", "rule"],
                    "python train.py (20 steps of a small MLP)": [str(script)],
                    "doctor run train.py": ["-m", "gradcheck_doctor", "run", str(script), "--exit-zero"],
                    "python nothing.py (import torch, no more)": [str(nothing)],
                    "doctor run nothing.py": ["-m", "gradcheck_doctor", "run", str(nothing), "--exit-zero"]}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(repeats):
            for name, arguments in commands.items():
                seconds[name].append(_process_seconds(arguments, folder))
    rows = [(name, f"{min(c for c, _ in found):.2f}", f"{min(w for _, w in found):.2f}") for name, found in seconds.items()]
    return Table(f"least of {repeats} runs", ("command", "CPU seconds", "wall seconds"), rows)


def _process_seconds(arguments: list[str], folder: str) -> tuple[float, float]:
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)            # what is installed by pip is compiled; here the first run does it
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, check=True, env=environment)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def audit_cost(workload: Workload, quick: bool) -> Table:
    """`doctor.audit` of a model in memory against one plain forward and backward of it, in turn."""
    import gradcheck_doctor as doctor
    from gradcheck_doctor.observe.probe import probe

    torch.manual_seed(0)
    model = workload.build()
    x, y = next(workload.batches())
    takes_labels = "labels" in inspect.signature(model.forward).parameters
    batch = {"input_ids": x, "labels": y} if takes_labels else (x, y)
    loss = None if takes_labels else nn.functional.cross_entropy

    def plain() -> None:
        workload.loss(model, x, y).backward()
        model.zero_grad()

    timed: dict[str, list[float]] = {"plain": [], "audit": [], "probe": []}
    plain()
    for _ in range(2 if quick else 5):
        timed["plain"].append(_cpu_seconds(plain))
        timed["audit"].append(_cpu_seconds(lambda: doctor.audit(model, batch, loss)))
        timed["probe"].append(_cpu_seconds(lambda: probe(model, lambda m: workload.loss(m, x, y))))
    base = statistics.median(timed["plain"])
    row = (f"{base:.2f}", f"{statistics.median(timed['audit']) / base:.2f}", f"{statistics.median(timed['probe']) / base:.2f}")
    return Table(workload.size, ("forward + backward, CPU s", "doctor.audit / that", "of it the probe"), [row])


def _cpu_seconds(act: Callable[[], object]) -> float:
    start = time.thread_time()
    act()
    return time.thread_time() - start


def facts() -> str:
    """What the figures were measured on."""
    model = next((line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown processor")
    load = ", ".join(f"{n:.1f}" for n in os.getloadavg())
    return (f"{model}, {os.cpu_count()} cores (shared: load averages {load}), torch {torch.__version__}, {torch.get_num_threads()} thread, "
            f"Python {sys.version.split()[0]}")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
