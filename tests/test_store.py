"""What was written while it trained is what the rules would have seen, whenever the run ended."""
import json
import math
import os
import sqlite3
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradcheck_doctor.errors import ConfigError
from gradcheck_doctor.observe.watch import Monitor
from gradcheck_doctor.records.exact import decode, encode
from gradcheck_doctor.records.recording import Observed, ParameterStep, Recording, StepRecord
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.records.summaries import Summary
from gradcheck_doctor.session import examine
from gradcheck_doctor.store.export import COLUMNS, export
from gradcheck_doctor.store.reader import facts, is_store, read
from gradcheck_doctor.store.writer import Limits, Store


def as_text(recording):
    return json.dumps(encode(recording), sort_keys=True, allow_nan=False)


def small():
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def train(path, steps=20, every=1, limits=None, on_step=None, models=1, said=None):
    """A run written to `path`; returns what the monitor itself has of it, and the store."""
    store = Store(str(path), {"target": "train.py"}, (said if said is not None else []).append, limits)
    nets = [small() for _ in range(models)]
    optimizers = [torch.optim.Adam(net.parameters(), 1e-2) for net in nets]
    with Monitor(every=every, on_observed=store.observed, on_step=store.step) as monitor:
        for step in range(steps):
            for net, optimizer in zip(nets, optimizers):
                x, y = torch.randn(16, 12), torch.randint(0, 4, (16,))
                optimizer.zero_grad()
                F.cross_entropy(net(x), y).backward()
                optimizer.step()
            if on_step is not None:
                on_step(step, store)
    return monitor, store


VALUES = [(1, 2.5, "ü", None, True), [1, (2,)], {"a": {"b": (1,)}}, {1: 2, "$x": 3}, frozenset({1, 2}), Span("f.py", 3, 5), math.inf, -math.inf,
          Summary(3, 0.0, 1.0, 1.0, 2.0, 3.0, 0.5), Observed(4, None), ParameterStep(1, None), StepRecord(2, loss=math.inf),
          Recording("run", notes={"orphans": [{"built": Span("a", 1)}], "counts": {"x": (1, 2)}}, probe={"shape": (3, 4)})]


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_any_record_comes_back_exactly(value):
    back = decode(json.loads(json.dumps(encode(value), allow_nan=False)))
    assert back == value or isinstance(value, Summary) and repr(back) == repr(value)
    assert type(back) is type(value)


def test_not_a_number_comes_back():
    assert math.isnan(decode(encode(math.nan)))


@pytest.mark.parametrize("models", [1, 2])
def test_what_is_read_is_what_was_seen(tmp_path, models):
    """Two models: the first gets its prefix when the second is met, so names that were written change."""
    monitor, store = train(tmp_path / "run.db", models=models)
    store.ended(monitor.recording(), "ended", merged=models == 2)
    seen = monitor.recording()
    stored = read(str(tmp_path / "run.db"))
    assert as_text(stored.recording) == as_text(seen)
    assert [f.fingerprint for f in examine(stored.recording, "t").report.findings] == [f.fingerprint for f in examine(seen, "t").report.findings]
    assert stored.meta["target"] == "train.py" and stored.meta["status"] == "ended"
    assert os.listdir(tmp_path) == ["run.db"]


def test_at_any_moment_all_but_the_step_being_made_can_be_read(tmp_path):
    """What a killed process leaves is what another reader sees now: read while the run goes on."""
    path, lengths = str(tmp_path / "run.db"), []

    def look(step, store):
        recording = read(path).recording
        lengths.append((step + 1, len(recording.steps), len(recording.curve), len(recording.operations[-1].observed), recording.total_steps))
    train(path, steps=12, on_step=look)
    assert lengths == [(n, n, n, n, n) for n in range(1, 13)]
    assert "killed" in read(path).recording.probe["stopped"]


def test_steps_between_observed_ones_cost_no_write(tmp_path):
    writes = []
    train(tmp_path / "run.db", steps=60, every=20, on_step=lambda step, store: writes.append(store._connection.total_changes))
    grew = [step for step in range(1, 60) if writes[step] > writes[step - 1]]
    assert set(grew) <= {*range(12), 20, 40}


def test_the_loss_between_observed_steps_is_written_every_few_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr("gradcheck_doctor.store.writer.SECONDS", 0.0)
    train(tmp_path / "run.db", steps=30, every=1000)
    recording = read(str(tmp_path / "run.db")).recording
    assert len(recording.curve) == 30 and recording.total_steps == 30 and len(recording.operations[-1].observed) < 15


def test_nan_and_infinity_survive(tmp_path):
    monitor, store = train(tmp_path / "run.db", steps=3)
    monitor.steps.rows.put(1, StepRecord(step=1, loss=math.nan, grad_norm=math.inf))
    monitor.steps.curve[1] = (1, math.nan)
    store._stale = True
    store.ended(monitor.recording(), "ended")
    recording = read(str(tmp_path / "run.db")).recording
    assert math.isnan(recording.steps[1].loss) and recording.steps[1].grad_norm == math.inf and math.isnan(recording.curve[1][1])


def test_size_is_bounded_by_thinning_the_middle(tmp_path):
    sizes = []
    limits = Limits(steps=60, points=80)
    monitor, store = train(tmp_path / "run.db", steps=160, limits=limits, on_step=lambda *_: sizes.append(os.path.getsize(tmp_path / "run.db")))
    store.ended(monitor.recording(), "ended")
    recording = read(str(tmp_path / "run.db")).recording
    kept = [row.step for row in recording.parameter_steps["0.weight"]]
    assert len(kept) <= 60 and kept[:8] == list(range(8)) and kept[-16:] == list(range(144, 160))
    layers = [seen.step for seen in recording.operations[-1].observed]
    assert set(layers) <= set(kept) and layers[:8] == kept[:8] and len([step for step in layers if step >= 144]) >= 3      # late ones: a quarter sees layers
    assert len(recording.curve) <= 80 and recording.curve[-1][0] == 159
    assert max(sizes[100:]) <= 1.3 * max(sizes[70:100])


def test_rows_of_huge_models_are_bounded_too(tmp_path):
    monitor, store = train(tmp_path / "run.db", steps=20, limits=Limits(rows=60))
    rows = sqlite3.connect(tmp_path / "run.db").execute("SELECT (SELECT count(*) FROM layer_step) + (SELECT count(*) FROM parameter_step)").fetchone()[0]
    assert rows == store._rows <= 60
    assert read(str(tmp_path / "run.db")).recording.operations[-1].observed[-1].step == 19


def test_training_goes_on_when_the_disk_is_full_and_it_is_said_once(tmp_path):
    said = []
    monitor, store = train("/dev/full", steps=5, said=said)
    store.ended(monitor.recording(), "ended")
    assert len(said) == 1 and "training goes on without it" in said[0] and monitor.step == 5
    assert not monitor.recording().blind_spots


def test_a_file_that_can_not_be_made_is_said_once(tmp_path):
    said = []
    (tmp_path / "file").write_text("x")
    monitor, store = train(tmp_path / "file" / "run.db", steps=3, said=said)
    assert len(said) == 1 and monitor.step == 3 and not store.open


def test_other_files_are_never_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("precious")
    sqlite3.connect(tmp_path / "other.db").executescript("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
    for name in ("notes.txt", "other.db", "."):
        with pytest.raises(ConfigError, match="not overwritten"):
            Store(str(tmp_path / name), {}, print)
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_the_store_of_a_run_that_ended_is_replaced_that_of_a_running_one_is_not(tmp_path):
    path = str(tmp_path / "run.db")
    monitor, store = train(path, steps=4)
    store.ended(monitor.recording(), "ended")
    _, store = train(path, steps=2)
    assert read(path).recording.total_steps == 2
    with sqlite3.connect(path) as rows:
        rows.execute("UPDATE meta SET value = ? WHERE key = 'process'", (str(os.getppid()),))
    with pytest.raises(ConfigError, match="still writing"):
        Store(path, {}, print)


def test_files_that_are_no_store_are_refused_with_what_to_do(tmp_path):
    path = str(tmp_path / "run.db")
    with pytest.raises(ConfigError, match="no such file"):
        read(path)
    sqlite3.connect(path).executescript("CREATE TABLE t (x)")
    with pytest.raises(ConfigError, match="not one of this tool.*--store"):
        read(path)
    os.unlink(path)
    monitor, store = train(path, steps=2)
    store.ended(monitor.recording(), "ended")
    whole = Path(path).read_bytes()
    sqlite3.connect(path).executescript("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="store version 99.*upgrade"):
        read(path)
    Path(path).write_bytes(whole[: len(whole) // 2])
    assert is_store(path)
    with pytest.raises(ConfigError, match="damaged"):
        read(path)
    assert facts(str(tmp_path / "none")) == {}


def test_a_store_without_a_step_says_so(tmp_path):
    Store(str(tmp_path / "run.db"), {}, print).close("crashed")
    with pytest.raises(ConfigError, match="no optimizer step was observed"):
        read(str(tmp_path / "run.db"))


def test_csv_and_parquet_hold_the_same_table(tmp_path):
    import csv

    from pyarrow import parquet
    monitor, store = train(tmp_path / "run.db", steps=8)
    store.ended(monitor.recording(), "ended")
    recording = monitor.recording()
    count = export(str(tmp_path / "run.db"), str(tmp_path / "run.csv"))
    assert count == export(str(tmp_path / "run.db"), str(tmp_path / "run.parquet")) == 8 * (1 + len(recording.operations) + len(recording.parameters))
    with open(tmp_path / "run.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    table = parquet.read_table(tmp_path / "run.parquet").to_pylist()
    assert list(rows[0]) == COLUMNS == list(table[0])
    weight = [r for r in rows if r["name"] == "0.weight" and r["step"] == "7"]
    assert float(weight[0]["update_ratio"]) == recording.parameter_steps["0.weight"][7].update_ratio
    layer = [r for r in table if r["kind"] == "layer" and r["name"] == "0" and r["step"] == 7]
    assert layer[0]["gradient_norm"] == recording.operations[1].observed[7].gradient.norm


def test_export_says_what_it_needs(tmp_path, monkeypatch):
    monitor, store = train(tmp_path / "run.db", steps=2)
    store.ended(monitor.recording(), "ended")
    with pytest.raises(ConfigError, match=r"\.csv or \.parquet"):
        export(str(tmp_path / "run.db"), str(tmp_path / "run.xlsx"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"gradcheck-doctor\[parquet\]"):
        export(str(tmp_path / "run.db"), str(tmp_path / "run.parquet"))
