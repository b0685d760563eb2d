"""Loops that change the weights themselves: their steps are found, and nothing about them changes."""
import math
import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradcheck_doctor as doctor
from gradcheck_doctor.integrations.script import run_script
from gradcheck_doctor.observe.watch import Monitor
from gradcheck_doctor.rules.engine import diagnose

X = torch.randn(256, 10, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] * X[:, 1] > 0).long()


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))


class OwnMomentum:
    """An optimizer that is none of torch's."""

    def __init__(self, parameters):
        self.parameters = list(parameters)
        self.speed = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self):
        for p, v in zip(self.parameters, self.speed, strict=True):
            v.mul_(0.9).add_(p.grad)
            p.sub_(0.05 * v)


def in_place(net):
    with torch.no_grad():
        for p in net.parameters():
            p -= 0.3 * p.grad


def by_data(net):
    for p in net.parameters():
        p.data.add_(p.grad, alpha=-0.3)


def asked(net, i):
    """A step with gradients of torch.autograd.grad, the parameters as a generator."""
    loss = F.cross_entropy(net(X[i]), Y[i])
    with torch.no_grad():
        for p, g in zip(net.parameters(), torch.autograd.grad(outputs=loss, inputs=net.parameters()), strict=True):
            p -= 0.3 * g
    return loss.item()


def loop(net, update, steps=40, accumulate=1, clear=True):
    losses = []
    for k in range(steps):
        for part in range(accumulate):
            i = torch.arange(32) + 32 * ((k * accumulate + part) % 8)
            loss = F.cross_entropy(net(X[i]), Y[i])
            loss.backward()
        losses.append(loss.item())
        update(net)
        if clear:
            net.zero_grad()
    return losses


@pytest.mark.parametrize("update", [in_place, by_data])
@pytest.mark.parametrize("every", ["auto", 1, 7])
def test_steps_losses_and_rate_are_those_of_the_loop_which_stays_as_it_is(update, every):
    free = mlp()
    expected = loop(free, update)
    net = mlp()
    with doctor.watch(net, every=every) as seen:
        assert loop(net, update) == expected
    assert all(torch.equal(a, b) for a, b in zip(free.parameters(), net.parameters(), strict=True))
    recording = seen.report().recording
    assert seen.monitor.observer.failure is None and recording.total_steps == 40
    assert [loss for _, loss in recording.curve] == expected and [s.loss for s in recording.steps] == expected
    [own] = recording.optimizers
    assert own.own and own.steps == 40 and own.groups[0].lr == pytest.approx(0.3)
    assert sorted(own.groups[0].parameters) == sorted(name for name, _ in net.named_parameters())


def test_update_ratios_are_those_of_sgd_with_the_same_rate():
    def ratios(watched, step):
        with watched as seen:
            step()
        return {row.step: row.update_ratio for row in seen.report().recording.parameter_steps["2.weight"] if row.update_ratio is not None}

    net, same = mlp(), mlp()
    opt = torch.optim.SGD(same.parameters(), 0.3)
    own = ratios(doctor.watch(net, every=1), lambda: loop(net, in_place, 12))
    usual = ratios(doctor.watch(same, opt, every=1), lambda: loop(same, lambda _: opt.step(), 12))
    assert own[0] == pytest.approx(usual[0]) and 1 not in own                     # what step 1 changes is seen in the window of step 2
    assert [own[k] for k in range(2, 12)] == pytest.approx([usual[k - 1] for k in range(2, 12)])


def test_layers_are_seen_from_the_first_step_on():
    net = mlp()
    with doctor.watch(net, every=1) as seen:
        loop(net, in_place, 10)
    layer = next(o for o in seen.report().recording.operations if o.op == "linear")
    assert [s.step for s in layer.observed] == list(range(10)) and all(s.gradient is not None for s in layer.observed)


def test_an_optimizer_of_ones_own_has_no_rate_and_no_cure_by_rate():
    net = mlp()
    opt = OwnMomentum(net.parameters())
    with doctor.watch(net) as seen:
        loop(net, lambda _: opt.step())
    [own] = seen.report().recording.optimizers
    assert own.steps == 40 and math.isnan(own.groups[0].lr)


def test_accumulating_by_hand_is_no_fault():
    net = mlp()
    with doctor.watch(net) as seen:
        loop(net, in_place, 80, accumulate=4)
    report = seen.report()
    assert report.recording.total_steps > 80 and not [f for f in report.findings if f.severity != "info"]


def test_bare_tensors():
    torch.manual_seed(0)
    weights = [torch.randn(10, 32, requires_grad=True), torch.zeros(32, requires_grad=True), torch.randn(32, 2, requires_grad=True)]
    weights[2].data.mul_(0.1)
    with Monitor() as monitor:
        for _ in range(30):
            F.cross_entropy(torch.relu(X @ weights[0] + weights[1]) @ weights[2], Y).backward()
            for w in weights:
                w.data -= 0.3 * w.grad
                w.grad = None
    recording = monitor.recording()
    assert monitor.observer.failure is None and recording.total_steps == 30 and len(recording.optimizers[0].groups[0].parameters) == 3


def test_only_what_changes_counts_as_held():
    net = mlp()
    with doctor.watch(net) as seen:
        loop(net, lambda net: in_place(net[4]))
    report = seen.report()
    assert sorted(report.recording.optimizers[0].groups[0].parameters) == ["4.bias", "4.weight"]
    assert not [f for f in report.findings if f.rule == "unoptimized-parameter"]


def test_an_optimizer_that_comes_later_is_a_second_phase():
    net = mlp()
    with doctor.watch(net) as seen:
        loop(net, in_place, 20)
        opt = torch.optim.SGD(net.parameters(), 0.1)
        loop(net, lambda _: opt.step(), 20)
    recording = seen.report().recording
    assert [o.own for o in recording.optimizers] == [True, False] and {s.optimizer for s in recording.steps} == {0, 1}
    assert [s.optimizer for s in recording.steps if s.step >= 22] == [1] * sum(s.step >= 22 for s in recording.steps)


def test_accumulation_before_the_first_step_of_an_optimizer_is_no_loop_of_its_own():
    net = mlp()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    with doctor.watch(net) as seen:
        loop(net, lambda _: opt.step(), 10, accumulate=100)
    recording = seen.report().recording
    assert recording.total_steps == 10 and [o.own for o in recording.optimizers] == [False]


def test_max_steps_ends_such_a_loop():
    net = mlp()
    stopped = []
    with Monitor([net], max_steps=5, stop=lambda: stopped.append(monitor.step)) as monitor:
        loop(net, in_place, 8)
    assert stopped[0] == 5


SCRIPT = """
import torch
from torch import nn
torch.manual_seed(0)
x = torch.randn(512, 10)
y = (x[:, 0] * x[:, 1] > 0).long()
net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
lr = {lr}
for step in range(200):
    i = torch.randint(0, 512, (64,))
    loss = nn.functional.cross_entropy(net(x[i]), y[i])
    loss.backward()
    with torch.no_grad():
        for p in net.parameters():
            {update}
            {clear}
"""
UPDATES = ["p -= lr * p.grad", "p.sub_(p.grad, alpha=lr)", "p.copy_(p - lr * p.grad)", "p.data = p.data - lr * p.grad"]


def run(tmp_path, text):
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(text))
    result = run_script(str(path), None, [])
    return result.recording, [f for f in diagnose(result.recording) if f.severity != "info"]


@pytest.mark.parametrize("update", ["p -= lr * g", "p.sub_(g, alpha=lr)", "p.copy_(p - lr * g)"])
def test_the_line_that_changes_the_weights_by_gradients_that_were_asked_for_is_blamed(tmp_path, update):
    text = SCRIPT.format(lr=30.0, update=update, clear="pass").replace("loss.backward()", "grads = torch.autograd.grad(loss, list(net.parameters()))")
    _, found = run(tmp_path, text.replace("for p in net.parameters()", "for p, g in zip(net.parameters(), grads)"))
    assert [f.rule for f in found][:1] == ["learning-rate-too-high"] and found[0].location.line == 15


@pytest.mark.parametrize("update", UPDATES)
def test_the_line_that_changes_the_weights_is_blamed(tmp_path, update):
    _, found = run(tmp_path, SCRIPT.format(lr=30.0, update=update, clear="p.grad = None"))
    assert [f.rule for f in found][:1] == ["learning-rate-too-high"] and found[0].location.line == 15


@pytest.mark.parametrize(("lr", "clear", "rule"), [(0.3, "p.grad = None", None), (1e-5, "p.grad = None", "learning-rate-too-low"), (0.3, "pass", "stale-gradient")])
def test_the_fault_of_such_a_loop_and_a_healthy_one(tmp_path, lr, clear, rule):
    recording, found = run(tmp_path, SCRIPT.format(lr=lr, update=UPDATES[0], clear=clear))
    assert [f.rule for f in found][:1] == ([rule] if rule else []) and recording.total_steps == 200


IMAGE = """
import torch
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU()){mode}
image = {image}
{before}
for step in range(60):
    loss = -net(image).pow(2).mean()
    loss.backward()
    {update}
"""
LEAF = "torch.randn(1, 3, 16, 16, requires_grad=True)"


@pytest.mark.parametrize("mode", ["", ".eval()"])
@pytest.mark.parametrize(("image", "before", "update"), [
    (LEAF, "", "image.data += 0.1 * image.grad; image.grad = None"),
    (LEAF, "opt = torch.optim.Adam([image], 0.05)", "opt.step(); opt.zero_grad()"),
    ("nn.Parameter(torch.randn(1, 3, 16, 16))", "opt = torch.optim.Adam([image], 0.05)", "opt.step(); opt.zero_grad()")])
def test_an_image_that_is_optimised_is_no_weight(tmp_path, mode, image, before, update):
    recording, found = run(tmp_path, IMAGE.format(mode=mode, image=image, before=before, update=update))
    assert not found and {p.name for p in recording.parameters} == {"0.weight", "0.bias", "2.weight", "2.bias"}


# -- gradients that come otherwise than by Tensor.backward --------------------------------------------------------------------------------
def by_backward(net, opt, i):
    opt.zero_grad()
    F.cross_entropy(net(X[i]), Y[i]).backward()
    opt.step()


def by_autograd_backward(net, opt, i):
    opt.zero_grad()
    torch.autograd.backward([F.cross_entropy(net(X[i]), Y[i])])
    opt.step()


def by_autograd_grad(net, opt, i):
    parameters = list(net.parameters())
    for p, g in zip(parameters, torch.autograd.grad(F.cross_entropy(net(X[i]), Y[i]), parameters), strict=True):
        p.grad = g
    opt.step()


def recorded(do, every=1):
    net = mlp()
    opt = torch.optim.Adam(net.parameters(), 1e-2)
    with doctor.watch(net, opt, every=every) as seen:
        for k in range(20):
            do(net, opt, torch.arange(32) + 32 * (k % 8))
    assert seen.monitor.observer.failure is None
    return seen.report().recording, net


@pytest.mark.parametrize("do", [by_autograd_backward, by_autograd_grad])
def test_gradients_asked_of_autograd_are_those_of_backward(do):
    expected, free = recorded(by_backward)
    found, net = recorded(do)
    assert all(torch.equal(a, b) for a, b in zip(free.parameters(), net.parameters(), strict=True))
    assert found.curve == expected.curve and [s.grad_norm for s in found.steps] == [s.grad_norm for s in expected.steps]
    assert found.parameter_steps == expected.parameter_steps and found.parameters == expected.parameters

    def layers(recording):
        return [(o.op, o.module, o.observed) for o in recording.operations if o.category != "loss" and o.op != "grad"]
    assert layers(found) == layers(expected) and [(x.op, x.value) for x in found.losses] == [(x.op, x.value) for x in expected.losses]


@pytest.mark.parametrize("every", ["auto", 1, 7])
def test_own_steps_by_autograd_grad_are_those_by_backward(every):
    free, net = mlp(), mlp()
    with doctor.watch(free, every=every) as seen:
        losses = loop(free, in_place)
    expected = seen.report().recording
    with doctor.watch(net, every=every) as seen:
        assert [asked(net, torch.arange(32) + 32 * (k % 8)) for k in range(40)] == losses
    found = seen.report().recording
    assert seen.monitor.observer.failure is None
    assert all(torch.equal(a, b) for a, b in zip(free.parameters(), net.parameters(), strict=True))
    assert found.curve == expected.curve and [s.grad_norm for s in found.steps] == pytest.approx([s.grad_norm for s in expected.steps])
    assert [(o.own, o.steps, o.groups[0].lr, sorted(o.groups[0].parameters)) for o in found.optimizers] == [
        (True, 40, pytest.approx(0.3), sorted(name for name, _ in net.named_parameters()))]
    assert {k: [r.update_ratio for r in v] for k, v in found.parameter_steps.items()} == {k: [r.update_ratio for r in v] for k, v in expected.parameter_steps.items()}
    assert [e.kind for e in found.events] == [e.kind for e in expected.events]

    def layers(recording):
        return [(o.op, o.module, o.observed) for o in recording.operations if o.op != "grad"]
    assert layers(found) == layers(expected)


def test_an_inner_loop_of_autograd_grad_in_front_of_an_optimizer_is_no_step():
    net = mlp()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    losses = []
    with doctor.watch(net, opt, every=1) as seen:
        for _ in range(6):
            opt.zero_grad()
            inner = F.cross_entropy(net(X[:32]), Y[:32])
            fast = [p.detach() - 0.1 * g for p, g in zip(net.parameters(), torch.autograd.grad(inner, list(net.parameters())), strict=True)]
            loss = F.cross_entropy(torch.func.functional_call(net, dict(zip((n for n, _ in net.named_parameters()), fast, strict=True)), X[32:64]), Y[32:64])
            outer = F.cross_entropy(net(X[64:96]), Y[64:96])
            outer.backward()
            losses.append(outer.item())
            opt.step()
    recording = seen.report().recording
    assert loss.isfinite() and seen.monitor.observer.failure is None
    assert [loss for _, loss in recording.curve] == losses and [o.own for o in recording.optimizers] == [False]


def test_every_way_to_call_autograd_grad_works_as_without_us():
    net = mlp()
    x = X[:4].clone().requires_grad_()

    def ways():
        y = net(x)
        edge = torch.autograd.graph.get_gradient_edge(y)
        yield torch.autograd.grad(y.sum(), [x, net[0].weight], None, True)
        yield torch.autograd.grad(y.sum(), (p for p in net.parameters()), retain_graph=True)
        yield torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
        yield torch.autograd.grad(y, [x], torch.eye(8).reshape(8, 4, 2), retain_graph=True, is_grads_batched=True)
        yield torch.autograd.grad(y.sum(), [x, torch.ones(1, requires_grad=True)], allow_unused=True, create_graph=True)
        yield torch.autograd.grad([y.sum(), y.square().sum()], x, retain_graph=True)
        yield torch.autograd.grad((edge,), x, torch.ones_like(y))
        yield (torch.func.grad(lambda t: net(t).sum())(X[:4]), torch.func.vmap(torch.func.grad(lambda t: net(t).sum()))(X[:4]))

    expected = list(ways())
    with doctor.watch(net) as seen:
        found = list(ways())
    for a, b in zip(expected, found, strict=True):
        assert all(torch.equal(g, h) if g is not None else h is None for g, h in zip(a, b, strict=True))
    assert seen.monitor.observer.failure is None


def test_a_graph_that_lives_on_is_no_step_and_neither_are_gradients_of_inputs():
    net = mlp()
    with doctor.watch(net) as seen:
        for _ in range(3):
            x = X[:32].clone().requires_grad_()
            loss = F.cross_entropy(net(x), Y[:32])
            torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
            torch.autograd.grad(loss, x)
    assert seen.monitor.backwards == 0 and seen.report().recording.total_steps == 0


def test_losses_between_observed_steps_are_known_of_autograd_backward():
    expected, _ = recorded(by_backward, every=7)
    found, _ = recorded(by_autograd_backward, every=7)
    assert found.curve == expected.curve and len(found.curve) == 20


def test_several_losses_at_once_are_one_loss():
    net = mlp()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    sums = []
    with doctor.watch(net, opt) as seen:
        for _ in range(3):
            opt.zero_grad()
            losses = [F.cross_entropy(net(X[:32]), Y[:32]), net[0].weight.square().sum()]
            torch.autograd.backward(losses)
            sums.append(sum(x.item() for x in losses))
            opt.step()
    assert [loss for _, loss in seen.report().recording.curve] == pytest.approx(sums)


def test_a_gradient_penalty_is_no_step_of_its_own():
    net = mlp()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    with doctor.watch(net, opt, every=1) as seen:
        losses = []
        for _ in range(6):
            opt.zero_grad()
            loss = F.cross_entropy(net(X[:32]), Y[:32])
            penalty = sum(g.square().sum() for g in torch.autograd.grad(loss, list(net.parameters()), create_graph=True))
            (loss + 0.1 * penalty).backward()
            losses.append((loss + 0.1 * penalty).item())
            opt.step()
    assert [loss for _, loss in seen.report().recording.curve] == losses


def test_names_that_a_script_keeps_of_autograd_backward_work_when_nothing_is_watched_any_more():
    net = mlp()
    original = torch.autograd.backward
    with doctor.watch(net) as seen:
        kept = torch.autograd.backward
    assert torch.autograd.backward is original
    kept(F.cross_entropy(net(X), Y))
    assert net[0].weight.grad is not None and seen.monitor.backwards == 0


def test_clipping_gradients_of_autograd_grad_is_not_too_early():
    net = mlp()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    with doctor.watch(net, opt, every=1) as seen:
        for _ in range(6):
            parameters = list(net.parameters())
            for p, g in zip(parameters, torch.autograd.grad(F.cross_entropy(net(X), Y), parameters), strict=True):
                p.grad = g
            with torch.no_grad():
                nn.utils.clip_grad_norm_(parameters, 1.0)
            opt.step()
    assert {e.kind for e in seen.report().recording.events} <= {"clip_norm"}


# -- passes without an end ----------------------------------------------------------------------------------------------------------------
def test_passes_without_a_step_are_seen_for_a_while_only(monkeypatch):
    from gradcheck_doctor.observe import graph, observer
    monkeypatch.setattr(observer, "FULL", 60)
    monkeypatch.setattr(graph, "LIMIT", 40)
    net = mlp()
    with Monitor([net]) as monitor:
        for _ in range(30):
            net(X)
        assert not monitor.observer._on and monitor.observer.recorded == 60
    recording = monitor.recording()
    assert monitor.observer.failure is None and len(recording.operations) == 40
    assert any("more than 40 calls" in spot.reason for spot in recording.blind_spots)


def test_a_forward_that_is_too_long_is_still_a_step(monkeypatch):
    from gradcheck_doctor.observe import graph
    monkeypatch.setattr(graph, "LIMIT", 25)
    net = mlp()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    with doctor.watch(net, opt, every=1) as seen:
        for _ in range(4):
            opt.zero_grad()
            x = X
            for _ in range(10):
                x = x + net(x).mean()
            x.square().mean().backward()
            opt.step()
    recording = seen.report().recording
    assert seen.monitor.observer.failure is None and len(recording.curve) == len(recording.steps) == 4 and len(recording.operations) == 25
    assert all(len(rows) == 4 and rows[0].grad_norm for rows in recording.parameter_steps.values())
    first = recording.operations[1]
    assert first.op == "linear" and all(s.gradient is not None for s in first.observed)


# -- what other people's loops showed -------------------------------------------------------------------------------------------------------
def serious(report):
    return [f.rule for f in report.findings if f.severity != "info"]


def test_gradients_that_backward_does_not_reach_are_not_left_over():
    """GradNorm: the weights of the losses have an optimizer of their own, cleared behind the backward of the model."""
    net, shares = mlp(), torch.ones(2, requires_grad=True)
    opt, own = torch.optim.SGD(net.parameters(), 0.1), torch.optim.SGD([shares], 0.01)
    with doctor.watch(net, [opt, own], every=1) as seen:
        for k in range(30):
            i = torch.arange(32) + 32 * (k % 8)
            opt.zero_grad()
            F.cross_entropy(net(X[i]), Y[i]).backward()
            own.zero_grad()
            shares.grad = 0.1 * torch.randn(2)
            own.step()
            opt.step()
    assert "stale-gradient" not in [f.rule for f in seen.report().findings]


@pytest.mark.parametrize(("clear", "rules"), [(True, []), (False, ["stale-gradient"])])
def test_gradients_that_are_left_over_are_still_found(clear, rules):
    net = mlp()
    opt = torch.optim.SGD(net.parameters(), 0.05)
    with doctor.watch(net, opt, every=1) as seen:
        loop(net, lambda _: opt.step(), 40, clear=clear)
    assert [r for r in serious(seen.report()) if r == "stale-gradient"] == rules


def test_a_training_in_another_thread_is_neither_stale_nor_healthy(tmp_path):
    import threading
    net = mlp()
    opt = torch.optim.SGD(net.parameters(), 0.05)
    with Monitor() as monitor:
        thread = threading.Thread(target=lambda: loop(net, lambda _: opt.step(), 40))
        thread.start()
        thread.join()
    from gradcheck_doctor.session import examine
    report = examine(monitor.recording(), "train.py").report
    assert not serious(report) and report.headline == "no training observed" and torch.overrides._len_torch_function_stack() == 0


def test_sparse_inputs():
    torch.manual_seed(0)
    weight = nn.Linear(10, 2)

    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = weight

        def forward(self, x, links):
            return self.out(torch.sparse.mm(links, x))

    net, links = Graph(), torch.eye(256).to_sparse()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    with doctor.watch(net, opt) as seen:
        for _ in range(6):
            opt.zero_grad()
            F.cross_entropy(net(X, links), Y).backward()
            opt.step()
    assert seen.monitor.observer.failure is None and seen.report().recording.total_steps == 6


def test_an_ensemble_that_is_mapped_over_is_not_cut_off():
    from torch.func import functional_call, stack_module_state
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2)) for _ in range(3)]
    parameters, buffers = stack_module_state(models)
    base = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2)).to("meta")
    weights = {k: v.detach().requires_grad_() for k, v in parameters.items()}
    opt = torch.optim.Adam(list(weights.values()), 1e-2)
    with Monitor() as monitor:
        for _ in range(20):
            out = torch.vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), in_dims=(0, 0, None))(weights, buffers, X)
            opt.zero_grad()
            F.cross_entropy(out.flatten(0, 1), Y.repeat(3)).backward()
            opt.step()
    assert not [f for f in diagnose(monitor.recording()) if f.severity != "info"]


def test_what_gets_no_gradient_is_looked_into_for_a_while_only(monkeypatch):
    from gradcheck_doctor.observe import observer
    monkeypatch.setattr(observer, "FULL", 50)
    net = mlp()
    hidden = []
    with Monitor([net]) as monitor:
        monkeypatch.setattr(monitor.observer.hidden, "made", lambda *a: hidden.append(1))
        with torch.no_grad():
            for _ in range(40):
                net(X)
    assert monitor.observer.failure is None and len(hidden) <= 50


def test_many_models_are_counted_in_the_name():
    nets = [mlp() for _ in range(6)]
    with Monitor(nets) as monitor:
        for net in nets:
            net(X).sum().backward()
    assert monitor.recording().model_class == "Sequential x6"
    with Monitor(nets[:2]) as monitor:
        sum(net(X).sum() for net in nets[:2]).backward()
    assert monitor.recording().model_class == "Sequential, Sequential"
