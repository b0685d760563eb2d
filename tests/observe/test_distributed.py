"""Two gloo processes: nothing changes, nothing hangs, and rank 0 reports what one process would have reported."""
import json
import os
import pickle
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import ranks_worker as worker

import gradcheck_doctor as doctor

HERE = Path(__file__).parent


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Results of both ranks, from one launch of the worker."""
    folder = tmp_path_factory.mktemp("ranks")
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen([sys.executable, str(HERE / "ranks_worker.py"), str(folder / f"{r}")], env={**shared, "RANK": str(r)}, stderr=subprocess.PIPE)
               for r in range(2)]
    try:
        errors = [p.communicate(timeout=150)[1].decode() for p in started]
    finally:
        for process in started:
            process.kill()
    assert [p.returncode for p in started] == [0, 0], "\n".join(errors)
    return [pickle.loads((folder / f"{r}").read_bytes()) for r in range(2)]


def alone(make, steps, watched=True):
    return worker.train(worker.seeded(make), worker.batches(steps), lambda m, o: doctor.watch(m, o))[2].report()


@pytest.mark.parametrize("wrap", ["ddp", "unused", "fsdp"])
def test_losses_weights_and_randomness_are_bitwise_the_same_on_each_rank(ranks, wrap):
    assert [r["identity"][wrap][0] for r in ranks] == [True, True]
    recording = ranks[0]["identity"][wrap][1].recording
    assert recording.blind_spots == () and len(recording.operations) == 7 + 1 and recording.probe["ranks"] == "2 of 2"


def test_weights_that_another_module_hands_on_are_known_by_their_shards(ranks):
    recording = ranks[0]["attention"].recording
    assert [o.parameters for o in recording.operations if o.category == "attention"] == [
        ("inside.in_proj_weight", "inside.in_proj_bias", "inside.out_proj.weight", "inside.out_proj.bias")]


def test_gradient_accumulation_without_sync_is_the_same_too(ranks):
    assert [r["accumulate"][0] for r in ranks] == [True, True]
    assert {s.backwards for s in ranks[0]["accumulate"][1].recording.steps} == {2}


@pytest.mark.parametrize("wrap", ["ddp", "unused", "fsdp"])
def test_norms_equal_those_of_one_process_with_the_whole_batch(ranks, wrap):
    """Shards, averaged gradients and local losses: every figure is that of the whole."""
    truth, found = alone(lambda: worker.Net(p=0.0, norm=False), 3).recording, ranks[0]["norms"][wrap].recording
    for a, b in zip(truth.steps, found.steps, strict=True):
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=1e-5) and b.loss == pytest.approx(a.loss, rel=1e-5)
    for name, rows in truth.parameter_steps.items():
        for a, b in zip(rows, found.parameter_steps[name], strict=True):
            assert (b.grad_norm, b.weight_norm) == pytest.approx((a.grad_norm, a.weight_norm), rel=1e-4), name
            assert b.update_ratio == pytest.approx(a.update_ratio, rel=1e-2), name
    assert [e.before for e in found.events if e.kind == "clip_norm"] == pytest.approx([e.before for e in truth.events if e.kind == "clip_norm"], rel=1e-5)
    assert [(o.module, o.op, o.module_type, o.parameters, o.producers) for o in found.operations] == [
        (o.module, o.op, o.module_type, o.parameters, o.producers) for o in truth.operations]
    for a, b in zip(truth.operations, found.operations, strict=True):
        assert b.first.forward.rms == pytest.approx(a.first.forward.rms, rel=1e-4), a.site
        if a.first.gradient is not None and a.op != "cross_entropy":
            assert b.first.gradient.norm == pytest.approx(a.first.gradient.norm, rel=1e-4), a.site
    for a, b in zip(truth.parameters, found.parameters, strict=True):
        assert (b.name, b.shape, b.scheme, b.trained) == (a.name, a.shape, a.scheme, a.trained)
        assert (b.std, b.mean, b.absmax) == pytest.approx((a.std, a.mean, a.absmax), rel=1e-6)


@pytest.mark.parametrize("wrap", ["ddp", "unused", "fsdp"])
def test_a_sick_model_gets_the_findings_of_one_process(ranks, wrap):
    truth = [(f.code, f.module, f.severity) for f in alone(worker.Deep, 8).findings]
    assert [(f.code, f.module, f.severity) for f in ranks[0]["deep"][wrap].findings] == truth
    assert ("GD301", "0", "error") in truth


def test_a_unit_is_dead_only_when_it_is_dead_on_every_rank(ranks):
    dead = [next(o for o in r["one sided"].recording.operations if o.op == "relu").units for r in ranks]
    assert dead[1].indices == (0, 1)                              # rank 1 alone
    assert dead[0].indices == (0,) and dead[0].samples == 2 * dead[1].samples


def test_a_rank_that_is_not_watched_is_named_and_not_waited_for(ranks):
    report, seconds = ranks[0]["only rank 0"]
    assert "nothing was handed in by rank 1" in str(report.recording.blind_spots) and seconds < 5
    assert ranks[1]["only rank 0"][0] is None


def test_ranks_with_different_schedules_do_not_hang(ranks):
    """Only steps that both observed are merged; norms of the others stay out."""
    steps = [o.step for o in ranks[0]["schedules"].recording.operations[0].observed]
    assert steps == [s for s in range(14) if s < 8 or s % 15 == 0]


def test_reports_in_the_middle_of_training(ranks):
    """One that only rank 0 asks for leaves out what it would have to guess; the next one has both ranks."""
    early, late, final = ranks[0]["middle"]
    assert "rank 1" in str(early.recording.blind_spots) and early.recording.steps[-1].grad_norm is None
    assert set(early.recording.parameter_steps.values()) == {()}
    assert late.recording.blind_spots == () and late.recording.steps[-1].grad_norm > 0
    assert final.recording.total_steps == 6 and final.recording.probe["ranks"] == "2 of 2"


def test_only_rank_0_prints(ranks):
    assert str(ranks[1]["destroyed"]) == "" and "rank 0 reports" in str(ranks[1]["destroyed"].recording.blind_spots)
    assert "Net" in str(ranks[0]["destroyed"])


SCRIPT = """
    import os, sys, torch, torch.distributed as dist, torch.nn.functional as F
    from torch import nn
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    net = nn.Sequential(*[m for _ in range(20) for m in (nn.Linear(12, 12), nn.Sigmoid())], nn.Linear(12, 3))
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for step in range(10):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(torch.randn(8, 12)), torch.randint(0, 3, (8,)))
        loss.backward()
        optimizer.step()
        if "fail" in sys.argv and step == 8 and rank == 0:
            raise RuntimeError("the script's own fault")
    sys.stdout.write(f"trained {rank}\\n")
    dist.destroy_process_group()
"""


def torchrun(folder, *arguments):
    (folder / "train.py").write_text(textwrap.dedent(SCRIPT))
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port(), "-m", "gradcheck_doctor", "run",
                           *arguments], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=150)


def test_torchrun_gives_one_report_on_both_ranks(tmp_path):
    done = torchrun(tmp_path, "--exit-zero", "--output", "report.json", "train.py")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "trained 0", "trained 1"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["probe"]["ranks"] == "2 of 2" and "GD301" in {f["code"] for f in report["findings"]}
    assert report["findings"][0]["location"]["file"] == "train.py" and report["findings"][0]["module"].split(".")[0].isdigit()


def test_a_crash_on_rank_0_still_gives_its_report(tmp_path):
    done = torchrun(tmp_path, "train.py", "fail")
    assert done.returncode == 1 and "the script's own fault" in done.stderr
    assert done.stdout.count("GD301 vanishing-gradient") == 1
