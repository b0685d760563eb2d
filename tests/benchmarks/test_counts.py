"""The price of observing in figures without noise: hooks, calls, bytes, copies, life times."""
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gradcheck_doctor as doctor
from gradcheck_doctor.observe import collector, updates
from gradcheck_doctor.observe.observer import Observer
from gradcheck_doctor.observe.watch import Monitor
from tests.benchmarks import peers, protocol
from tests.benchmarks.models import WORKLOADS, Workload
from tests.benchmarks.ours import Doctor, Idle

SMALL = Workload("small", lambda: nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Tanh(), nn.Linear(64, 5)),
                 lambda: (torch.randn(48, 40), torch.randint(0, 5, (48,))), WORKLOADS["mlp"].loss, "small MLP, batch 48")
OPERATIONS = 7         # of its forward, the loss included


def training(steps, **options):
    """A watched training, stopped after each step: yields (monitor, step number)."""
    torch.manual_seed(0)
    model, batches = SMALL.build(), SMALL.batches()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with Monitor([model], [optimizer], **options) as monitor:
        for step in range(steps):
            x, y = next(batches)
            SMALL.loss(model, x, y).backward()
            optimizer.step()
            optimizer.zero_grad()
            yield monitor, step
    assert monitor.observer.failure is None


def module_hooks():
    from torch.nn.modules import module
    return len(module._global_forward_hooks) + len(module._global_forward_pre_hooks) + len(module._global_backward_hooks)


def optimizer_hooks():
    from torch.optim import optimizer
    return len(optimizer._global_optimizer_pre_hooks) + len(optimizer._global_optimizer_post_hooks)


def test_idle_steps_have_no_module_hook_and_no_mode():
    counted = []
    for monitor, step in training(30, every=10):
        idle = not monitor.observer.active
        assert idle == (step + 1 >= 8 and (step + 1) % 10 != 0)
        counted.append(idle)
        dense = step + 1 < 8                    # on later steps the mode waits for the first module that runs
        assert (module_hooks(), torch.overrides._len_torch_function_stack()) == ((0, 0) if idle else (2, 1) if dense else (2, 0))
    assert sum(counted) >= 20


def test_idle_steps_call_nothing_of_ours_in_the_forward():
    """Not one operation of an idle step passes through the observer."""
    calls = []
    for monitor, step in training(30, every=10):
        calls.append(monitor.observer.calls)
        if step > 10 and step % 10 not in (0, 9):
            assert calls[step] == calls[step - 1]


def test_hooks_are_all_off_after_detach_also_after_an_exception():
    backward = torch.Tensor.backward
    with pytest.raises(ZeroDivisionError):
        for _, step in training(5, every=1):
            if step == 3:
                raise ZeroDivisionError
    gc.collect()
    assert (module_hooks(), optimizer_hooks(), torch.overrides._len_torch_function_stack()) == (0, 0, 0) and torch.Tensor.backward is backward
    list(training(3, every=1))
    assert (module_hooks(), optimizer_hooks(), torch.overrides._len_torch_function_stack()) == (0, 0, 0) and torch.Tensor.backward is backward


def test_calls_of_an_observed_step_are_bounded_by_its_operations():
    """A few calls an operation and a parameter; none for the optimizer's own arithmetic."""
    seen = [monitor.observer.calls for monitor, _ in training(12, every=1)]
    parameters = 8
    assert 2 * OPERATIONS <= seen[-1] - seen[-2] <= 4 * OPERATIONS + 4 * parameters


def test_bytes_copied_are_bounded_by_the_samples():
    """Each value and each gradient gives at most 1,024 elements, a few steps wait together, and buffers do not grow after that."""
    held = []
    for monitor, _ in training(32, every=1):
        blocks = [b for group in monitor.observer.collector._groups.values() for b in group.blocks]
        held.append(sum(b.numel() for b in blocks))
    rows = 2 * (OPERATIONS + 1)
    assert held[-1] <= 2 * collector.TOGETHER * rows * 1024 and held[-1] == held[20]


def test_a_large_batch_copies_no_more_than_a_small_one():
    sizes = []
    for batch in (64, 4096):
        gatherer = collector.Collector(1024)
        gatherer.put(torch.randn(batch, 64))
        gatherer.put(torch.randn(batch, 4, 8, 8))
        sizes.append([group.used * group.shape[0] * group.shape[1] for group in gatherer._groups.values()])
    assert sum(sizes[1]) <= 2 * 1024 and sum(sizes[0]) <= 2 * 1024


def test_statistics_come_to_the_host_in_one_copy(monkeypatch):
    """Statistics of all values, gradients and units of a step in one; beside it one for the gradients' norms and one for the updates."""
    copies = []

    def counted(tensors):
        copies.append(len(tensors))
        return to_host(tensors)
    to_host = collector.to_host
    monkeypatch.setattr(collector, "to_host", counted)
    monkeypatch.setattr(updates, "to_host", counted)
    dense = 8
    for _, step in training(dense + 8, every=1):
        assert len(copies) == 3 * (step + 1) if step < dense else len(copies) <= 3 * (step + 1)


def test_steps_after_the_dense_start_read_samples_only(monkeypatch):
    """No reduction over a whole activation or gradient, but for the units of a ReLU whose state is open."""
    whole = []
    monkeypatch.setattr(collector, "square", lambda value, square=collector.square: whole.append(value.numel()) or square(value))
    counts = []
    for _, _ in training(20, every=1):
        counts.append(len(whole))
    assert counts[7] > counts[6] > 0 and counts[-1] == counts[7]


def test_what_is_seen_of_a_repeated_pass_is_what_was_seen_of_the_first(monkeypatch):
    """Calls that are known are measured without being analysed: the same operations with the same numbers."""
    from gradcheck_doctor.observe.replay import Tree
    def recorded():
        last = None
        for monitor, _ in training(30, every=1, exact=True):
            last = monitor
        return last.recording()
    known = recorded()
    with monkeypatch.context() as patch:
        patch.setattr(Tree, "next", lambda *_: None)
        analysed = recorded()
    assert [o.site for o in known.operations] == [o.site for o in analysed.operations]
    assert [o.observed for o in known.operations] == [o.observed for o in analysed.operations]
    assert [o.units_last for o in known.operations] == [o.units_last for o in analysed.operations]


def test_no_value_is_read_one_by_one_on_a_device(monkeypatch):
    """Where reading waits for the device, the forward of an observed step reads no number."""
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Reads.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(collector, "at_hand", lambda value: False)
    torch.manual_seed(0)
    model, batches = SMALL.build(), SMALL.batches()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with Monitor([model], [optimizer], every=1) as monitor:
        for step in range(4):
            x, y = next(batches)
            with Reads():
                Reads.count = 0
                loss = SMALL.loss(model, x, y)
                assert step == 0 or Reads.count == 0
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert monitor.observer.failure is None


def test_no_activation_is_kept_alive():
    """Every output of every layer dies with its step, while it is being watched."""
    torch.manual_seed(0)
    model, batches = SMALL.build(), SMALL.batches()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    alive = []
    handles = [m.register_forward_hook(lambda module, args, output: alive.append(weakref.ref(output))) for m in model]
    with Monitor([model], [optimizer], every=1) as monitor:
        for step in range(4):
            x, y = next(batches)
            loss = SMALL.loss(model, x, y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            del loss
            gc.collect()
            assert len(alive) == 6 * (step + 1) and not [r for r in alive if r() is not None]
    assert monitor.observer.graph.nodes
    for handle in handles:
        handle.remove()


def test_every_variant_of_the_benchmark_gives_the_same_losses():
    """The peers and the doctor, interleaved as in the benchmark: `interleave` raises if one bit differs."""
    tools = [protocol.Tool(), Doctor(1), Doctor("auto"), Doctor(10), Idle(), peers.MeanGradients(), peers.ItemHooks(), peers.Histograms()]
    runs = protocol.interleave(SMALL, tools, rounds=12, warm=2)
    assert len({tuple(run.losses) for run in runs}) == 1 and len(runs[0].losses) == 14
    assert runs[1].tool.monitor.schedule.observed == 14 and runs[4].tool.monitor.schedule.observed == 0


def test_the_comparison_of_losses_can_fail():
    class Meddler(protocol.Tool):
        def after_backward(self):
            self.parameter.grad.mul_(1.0001)

        def attach(self, model, optimizer):
            self.parameter = next(model.parameters())
    with pytest.raises(AssertionError, match="changed the losses"):
        protocol.interleave(SMALL, [protocol.Tool(), Meddler()], rounds=3, warm=1)


def test_the_budget_counts_what_was_spent(monkeypatch):
    """Time inside our code makes the schedule rarer: a slow statistic is paid for by fewer observed steps."""
    def observed(wait):
        whole = Observer.finish_step

        def finish_step(observer):
            observer.seconds += wait
            whole(observer)
        with monkeypatch.context() as patch:
            patch.setattr(Observer, "finish_step", finish_step)
            monitors = [monitor for monitor, _ in training(60, every="auto")]
        return monitors[-1].schedule
    cheap, dear = observed(0.0), observed(1.0)
    assert dear.observed < cheap.observed and dear.observed <= 12 and dear.spent > 4 > cheap.spent


def test_the_watch_says_what_it_spent():
    model = SMALL.build()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = next(SMALL.batches())
    with doctor.watch(model, optimizer, every=2) as seen:
        for _ in range(6):
            SMALL.loss(model, x, y).backward()
            optimizer.step()
    assert 0 < seen.monitor.seconds < 60 and "steps" in seen.monitor.recording("run").probe["observed"]
