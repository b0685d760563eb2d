"""A pass that repeats known calls is measured without being analysed: what is recorded must be the same, for every kind of model and loop."""
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradcheck_doctor.observe.replay import LIMIT, Tree
from gradcheck_doctor.observe.watch import Monitor


class StochasticDepth(nn.Module):
    """Leaves blocks out by chance, functional activations, a shared layer, an in-place addition, a scalar parameter outside of modules."""

    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.ModuleList(nn.Linear(12, 12) for _ in range(4)), nn.Linear(12, 3)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        for block in self.blocks:
            if torch.rand(()) < 0.7:
                x = x + torch.tanh(block(F.relu(x)))
        x = F.relu(self.blocks[0](x), inplace=True) * 2
        x += 1
        return self.head(x * self.scale)


class Unrolled(nn.Module):
    """A hand-written cell over sequences of varying length."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        hidden = x.new_zeros(len(x), 8)
        for _ in range(int(torch.randint(2, 6, ()))):
            hidden = torch.tanh(self.inner(x) + self.outer(hidden))
        return self.head(hidden)


class Several(nn.Module):
    """Chunks, stacks, a recurrent layer, attention, batch norm and dropout."""

    def __init__(self):
        super().__init__()
        self.gru, self.norm, self.drop = nn.GRU(6, 8, batch_first=True), nn.BatchNorm1d(8), nn.Dropout(0.2)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        left, right = x.chunk(2, dim=1)
        y, _ = self.gru(torch.stack([left, right], dim=1))
        y = self.attention(y, y, y, need_weights=False)[0]
        return self.head(self.drop(self.norm(torch.cat([y[:, 0], y[:, 1]], dim=0)))[: len(x)])


class Raw(nn.Module):
    """Matrix products with bare parameters, a transposed (tied) weight, operations that return their input."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(12, 20) * 0.3), nn.Parameter(torch.zeros(20))

    def forward(self, x):
        y = F.dropout(x, 0.5, training=False)
        y = (y @ self.a + self.b).relu()
        return (y @ self.a.T)[:, :3]


MODELS = {"mlp": lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)), "stochastic depth": StochasticDepth,
          "unrolled": Unrolled, "several": Several, "raw": Raw,
          "encoder": lambda: nn.Sequential(nn.Unflatten(1, (3, 4)), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Flatten(), nn.Linear(12, 3))}


def trained(make, steps=30, evaluate=False, exact=True, cast=None):
    """Losses and the recording of a training with batches of two sizes."""
    torch.manual_seed(0)
    model, losses = make(), []
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with Monitor([model], [optimizer], every=1, exact=exact) as monitor:
        for step in range(steps):
            size = 9 if step % 5 == 4 else 24
            x = (torch.randn(size, 12) - 0.1) / 2                   # arithmetic on data is none of the model's
            x = x if cast is None else x.to(cast)
            model.train(not evaluate or step % 3 > 0)
            loss = F.cross_entropy(model(x), torch.randint(0, 3, (size,))) * 1.0
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        recording = monitor.recording()
    assert monitor.observer.failure is None
    return losses, recording, monitor


def known(recording):
    return [(o.site, o.ordinal, o.producers, o.parameters, o.called, o.shape, o.observed, o.units, o.units_last, o.time_gradients) for o in recording.operations]


@pytest.mark.parametrize("evaluate", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_recording_is_that_of_a_full_analysis(name, evaluate, monkeypatch):
    losses, seen, monitor = trained(MODELS[name], evaluate=evaluate)
    with monkeypatch.context() as patch:
        patch.setattr(Tree, "next", lambda *_: None)
        expected_losses, expected, _ = trained(MODELS[name], evaluate=evaluate)
    assert losses == expected_losses
    assert repr(known(seen)) == repr(known(expected))                # nan is not equal to itself
    assert seen.events == expected.events and seen.inputs == expected.inputs
    assert repr(seen.parameter_steps) == repr(expected.parameter_steps)


@pytest.mark.parametrize("name", MODELS)
def test_most_calls_of_a_known_pass_are_not_analysed(name, monkeypatch):
    from gradcheck_doctor.observe import observer
    analysed = []
    whole = observer.record
    monkeypatch.setattr(observer, "record", lambda seeing, *a: analysed.append(seeing.step) or whole(seeing, *a))
    trained(MODELS[name], steps=60)
    first, last = analysed.count(0), sum(analysed.count(step) for step in range(55, 60)) / 5
    assert last <= max(3, 0.5 * first)


def test_a_replaced_layer_and_a_replaced_weight_are_noticed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Monitor([model], [optimizer], every=1) as monitor:
        for step in range(16):
            if step == 5:
                model[2] = nn.Linear(8, 3)
            if step == 10:
                model[0].weight = nn.Parameter(torch.zeros(8, 12))
            F.cross_entropy(model(torch.randn(24, 12)), torch.randint(0, 3, (24,))).backward()
            optimizer.step()
            optimizer.zero_grad()
        recording = monitor.recording()
    linears = [o for o in recording.operations if o.op == "linear"]
    assert monitor.observer.failure is None and [len(o.observed) for o in linears] == [16, 5]
    assert [linears[0].observed[step].forward.sample_std > 1e-6 for step in (9, 10, 11)] == [True, False, False]       # zero weights: only the bias is left


def test_the_tree_is_bounded():
    """Calls that never repeat do not pile up."""
    from gradcheck_doctor.observe.graph import Graph
    from gradcheck_doctor.observe.replay import Call
    tree = Tree(Graph())
    for number in range(1000):
        tree.restart()
        tree.learn(Call(lambda number=number: number, None, None))
    assert len(tree.root.following) <= 64 and tree.size <= LIMIT


def test_samples_estimate_what_exact_statistics_say():
    """Norms from samples are near the exact ones on the same steps of the same training."""
    def wide():
        return nn.Sequential(nn.Linear(12, 300), nn.ReLU(), nn.Linear(300, 200), nn.GELU(), nn.Linear(200, 3))
    losses, exact, _ = trained(wide)
    same, sampled, _ = trained(wide, exact=False)
    assert losses == same
    for a, b in zip(exact.operations, sampled.operations, strict=True):
        both = [(x.forward, y.forward) for x in a.observed[8:] for y in b.observed[8:] if x.step == y.step and x.forward is not None and y.forward is not None]
        ratios = [y.rms / x.rms for x, y in both if x.rms > 0]
        assert all(0.6 < r < 1.6 for r in ratios) and (not ratios or 0.9 < sum(ratios) / len(ratios) < 1.1), a.site
    for name, rows in exact.parameter_steps.items():
        for x, y in zip(rows, sampled.parameter_steps[name], strict=True):
            assert y.grad_norm == pytest.approx(x.grad_norm, rel=0.35) and y.update_ratio == pytest.approx(x.update_ratio, rel=0.3), name


def test_late_steps_are_brief_where_each_is_observed():
    """Loss and every parameter's gradient norm, by no hook of ours in the model; a quarter sees everything, and no step is brief where fewer are observed."""
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.modes = nn.Linear(12, 80), nn.Linear(80, 3), []

        def forward(self, x):
            self.modes.append(torch.overrides._len_torch_function_stack())
            return self.b(torch.tanh(self.a(x)))

    norms = []

    def training(every, steps):
        torch.manual_seed(0)
        model = Asking()
        optimizer = torch.optim.SGD(model.parameters(), 1e-2)
        with Monitor([model], [optimizer], every=every) as monitor:
            for _ in range(steps):
                optimizer.zero_grad()
                F.cross_entropy(model(torch.randn(24, 12)), torch.randint(0, 3, (24,))).backward()
                norms.append(model.b.weight.grad.norm().item())
                optimizer.step()
        assert monitor.observer.failure is None
        return model, monitor.recording()

    model, recording = training(1, 164)
    layers = next([s.step for s in o.observed if s.gradient is not None] for o in recording.operations if o.op == "tanh")
    rows = recording.parameter_steps["b.weight"]
    assert layers[:64] == list(range(64)) and 20 <= len(layers) - 64 <= 30
    assert [step for step, depth in enumerate(model.modes) if depth] == layers
    assert [row.grad_norm for row in rows] == pytest.approx(norms)
    assert [row.step for row in rows if row.update_ratio is not None] == layers
    assert [s.step for s in recording.steps if s.grad_norm is not None] == list(range(164))
    for every in (4, "auto"):
        model, recording = training(every, 120 * (4 if every == 4 else 1))
        seen = [[s.step for s in o.observed] for o in recording.operations if o.op == "linear"]
        assert seen[0] == seen[1] == [row.step for row in recording.parameter_steps["b.weight"]]


@pytest.mark.parametrize("rounds", [1, 3, 7])
def test_each_of_several_optimizers_gets_steps_seen_in_full(rounds):
    """However the two take turns: a rhythm of eight would meet every fourth step always, or never."""
    torch.manual_seed(0)
    first, second = nn.Linear(6, 4), nn.Linear(4, 2)
    optimizers = [torch.optim.SGD(first.parameters(), 0.01)] * rounds + [torch.optim.SGD(second.parameters(), 0.01)]
    with Monitor([first, second], optimizers[-2:], every=1) as monitor:
        for step in range(420):
            second(first(torch.randn(8, 6))).square().mean().backward()
            optimizers[step % len(optimizers)].step()
            first.zero_grad()
            second.zero_grad()
    recording = monitor.recording()
    assert recording.blind_spots == ()
    for name in ("Linear.weight", "Linear_1.weight"):
        late = [row for row in recording.parameter_steps[name] if row.step >= 200 and row.update_ratio is not None]
        assert 220 / len(optimizers) / 8 <= len(late), (name, len(late))


@pytest.mark.parametrize("setting", ["deterministic", "double", "device"])
def test_settings_of_the_process_change_nothing(setting):
    """Deterministic algorithms, another default precision, a default device: late steps are observed as without them."""
    before = torch.get_default_dtype()
    torch.use_deterministic_algorithms(setting == "deterministic")
    torch.set_default_dtype(torch.float64 if setting == "double" else before)
    try:
        with torch.device("cpu") if setting == "device" else torch.enable_grad():
            _, recording, _ = trained(lambda: nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3)).float(),
                                      steps=40, exact=False, cast=torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_default_dtype(before)
    assert all(len(o.observed) == 40 for o in recording.operations if o.op == "linear")


@pytest.mark.parametrize("when", ["before backward", "in the forward"])
def test_numbers_asked_for_in_the_middle_of_a_step_change_nothing(when):
    """Reading an earlier step computes what waits, and takes back the room made for the current step: its values are taken as if there had been none."""
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 80), nn.Linear(80, 3)
            self.ask = None

        def forward(self, x):
            hidden = torch.tanh(self.a(x))
            if self.ask is not None and when == "in the forward":
                self.ask()
            return self.b(hidden)

    def training(asking):
        torch.manual_seed(0)
        model = Asking()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with Monitor([model], [optimizer], every=1) as monitor:
            def ask():
                for node in monitor.observer.graph.nodes:
                    if node.forward and node.op != "input":
                        assert node.forward[max(node.forward)].count
            model.ask = ask if asking else None
            for step in range(30):
                loss = model(torch.randn(40, 12)).square().mean()
                if asking and when == "before backward" and step % 3:
                    ask()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        recording = monitor.recording()
        assert recording.blind_spots == ()
        return repr(known(recording)), repr(recording.parameter_steps)

    assert training(True) == training(False)


def test_a_value_of_another_shape_or_kind_is_taken_all_the_same():
    """Room was made for what came last time; a short batch, a gradient with a graph of its own and another precision come anyway."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 50), nn.Tanh(), nn.Linear(50, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with Monitor([model], [optimizer], every=1) as monitor:
        for step in range(48):
            x = torch.randn(7 if step % 5 == 4 else 40, 12)
            with torch.autocast("cpu", torch.bfloat16, enabled=step % 6 == 5):
                loss = model(x).float().square().mean()
            loss.backward(create_graph=step % 4 == 3)
            optimizer.step()
            optimizer.zero_grad()
    recording = monitor.recording()
    assert recording.blind_spots == () and monitor.observer.failure is None
    for operation in recording.operations:
        if operation.op in ("linear", "tanh"):
            assert len([o for o in operation.observed if o.forward is not None and o.gradient is not None]) == 48
            assert {o.dtype for o in operation.observed} >= {"bfloat16"} and all(o.forward.count in (350, 2000, 21, 120) for o in operation.observed)


def test_two_backwards_through_a_batch_of_another_size():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 50), nn.Tanh(), nn.Linear(50, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with Monitor([model], [optimizer], every=1) as monitor, warnings.catch_warnings():
        warnings.simplefilter("error")                              # torch warns of a buffer that does not fit
        for step in range(40):
            output = model(torch.randn(30 + step % 3, 12))
            output[:, 0].square().mean().backward(retain_graph=True)
            output[:, 1:].square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    recording = monitor.recording()
    assert recording.blind_spots == () and all(len([o for o in op.observed if o.gradient]) == 40 for op in recording.operations if op.op == "linear")


def test_a_users_tensor_carries_no_hook_of_ours():
    model, seen = nn.Linear(4, 3), []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Monitor([model], [optimizer], every=1):
        for _ in range(12):
            output = model(torch.randn(5, 4))
            assert output._backward_hooks is None
            handle = output.register_hook(lambda gradient: seen.append(gradient.shape))
            output.sum().backward()
            handle.remove()
            optimizer.step()
    assert len(seen) == 12


def test_gradients_are_the_same_where_torch_takes_no_dictionary_of_hooks(monkeypatch):
    """`Node._register_hook_dict` is a private name; without it each value gets a prehook of its own."""
    from gradcheck_doctor.observe.gradient_hook import GradientHook

    losses, seen, _ = trained(MODELS["encoder"])
    monkeypatch.setattr(GradientHook, "attach", lambda self, made_by: made_by.register_prehook(self._among))
    same, again, _ = trained(MODELS["encoder"])
    assert losses == same and repr(known(seen)) == repr(known(again))
