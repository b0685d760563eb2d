"""Observing never changes training: losses and weights are bit for bit the same with and without the doctor."""
import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import gradcheck_doctor as doctor
from gradcheck_doctor.errors import BatchError, ProbeError
from gradcheck_doctor.observe.untouched import untouched
from gradcheck_doctor.observe.watch import Monitor


class Residual(nn.Module):
    def __init__(self, reentrant=None):
        super().__init__()
        self.a, self.act, self.drop, self.bn, self.b = nn.Linear(12, 12), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.BatchNorm1d(12), nn.Linear(12, 4)
        self.reentrant = reentrant

    def block(self, x):
        return self.act(self.bn(self.a(x)))

    def forward(self, x):
        y = checkpoint(self.block, x, use_reentrant=self.reentrant) if self.reentrant is not None else self.block(x)
        x = x + self.drop(y)
        x += 1
        return self.b(x)


class Memory(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(12, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.out(self.lstm(x.unsqueeze(1).expand(-1, 5, -1))[0][:, -1])


def make_plain():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))


def make_attention():
    return nn.Sequential(nn.Unflatten(1, (3, 4)), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Flatten(), nn.Linear(12, 4))


def make_parametrized():
    """Reading `weight` of such a layer in training mode runs a power iteration, which changes its buffers."""
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(12, 16)), nn.ReLU(), parametrizations.weight_norm(nn.Linear(16, 16)), nn.ReLU(),
                         nn.utils.spectral_norm(nn.Linear(16, 16)), nn.ReLU(), parametrizations.orthogonal(nn.Linear(16, 16)), nn.Linear(16, 4))


MODELS = {"mlp": make_plain, "dropout bn inplace": Residual, "checkpoint": lambda: Residual(False), "reentrant": lambda: Residual(True), "lstm": Memory,
          "attention": make_attention, "parametrized": make_parametrized}


def train(make, watched, *, amp=False, accumulate=1, optimizer="adam", every="auto"):
    torch.manual_seed(0)
    model = make()
    opt = {"adam": lambda p: torch.optim.Adam(p, 1e-2), "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=3)}[optimizer](model.parameters())
    losses = []

    def loop():
        for _ in range(12):
            x, y = torch.randn(16, 12), torch.randint(0, 4, (16,))

            def closure():
                opt.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
                    loss = F.cross_entropy(model(x), y)
                loss.backward()
                losses.append(loss.item())
                return loss
            if optimizer == "lbfgs":
                opt.step(closure)
            else:
                for k in range(accumulate):
                    if k:
                        (F.cross_entropy(model(x), y) / accumulate).backward()
                    else:
                        closure()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                opt.step()
    if watched:
        with doctor.watch(model, opt, every=every) as seen:
            loop()
        report = seen.report()
        assert not [s for s in report.recording.blind_spots if "stopped" in s.reason], report.recording.blind_spots
        assert report.recording.total_steps == 12 and report.recording.operations
    else:
        loop()
    return losses, [v.clone() for v in model.state_dict().values()], torch.get_rng_state()


@pytest.mark.parametrize("options", [{}, {"amp": True}, {"accumulate": 3}, {"optimizer": "lbfgs"}, {"every": 1}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_losses_weights_and_randomness_are_bitwise_the_same(name, options):
    if name == "lstm" and options.get("amp"):
        pytest.skip("oneDNN has no bfloat16 LSTM on every CPU: the bare loop itself may fail")
    plain, watched = train(MODELS[name], False, **options), train(MODELS[name], True, **options)
    assert plain[0] == watched[0]
    assert all(torch.equal(a, b) for a, b in zip(plain[1], watched[1], strict=True))
    assert torch.equal(plain[2], watched[2])


def test_two_optimizers_of_a_gan():
    def run(watched):
        torch.manual_seed(0)
        g, d = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)), nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
        og, od = torch.optim.Adam(g.parameters(), 1e-3), torch.optim.Adam(d.parameters(), 1e-3)

        def loop():
            for _ in range(10):
                real = torch.randn(16, 6)
                od.zero_grad()
                loss = F.softplus(-d(real)).mean() + F.softplus(d(g(torch.randn(16, 4)).detach())).mean()
                loss.backward()
                od.step()
                og.zero_grad()
                F.softplus(-d(g(torch.randn(16, 4)))).mean().backward()
                og.step()
        if watched:
            with doctor.watch([g, d], [og, od], every=1) as seen:
                loop()
            assert not seen.report().has("stale-gradient")
        else:
            loop()
        return [p.detach().clone() for p in (*g.parameters(), *d.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True), strict=True))


def snapshot(model):
    return {"state": {k: v.clone() for k, v in model.state_dict().items()}, "keys": [sorted(vars(m)) for m in model.modules()],
            "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()], "flags": [m.training for m in model.modules()],
            "grads": [p.grad for p in model.parameters()], "rng": torch.get_rng_state(), "backward": torch.Tensor.backward}


def same(a, b):
    assert all(torch.equal(a["state"][k], b["state"][k]) for k in a["state"])
    assert torch.equal(a["rng"], b["rng"])
    assert all(x is y for x, y in zip(a["grads"], b["grads"], strict=True))
    assert a["keys"] == b["keys"] and a["hooks"] == b["hooks"] and a["flags"] == b["flags"] and a["backward"] is b["backward"]


@pytest.mark.parametrize("norm_trains", [True, False])
@pytest.mark.parametrize("steps", [0, 3])
def test_audit_leaves_the_model_as_it_was(steps, norm_trains):
    """Running statistics too: batch_norm writes them without counting up the tensor's version."""
    model = Residual()
    model.bn.train(norm_trains)
    x, y = torch.randn(16, 12), torch.randint(0, 4, (16,))
    F.cross_entropy(model(x), y).backward()
    before = snapshot(model)
    doctor.audit(model, (x, y), F.cross_entropy, steps=steps)
    same(before, snapshot(model))
    pickle.dumps(model)
    copy.deepcopy(model)


def test_also_when_forward_raises():
    model, wrong = Residual(), torch.randn(16, 5)
    before = snapshot(model)
    with pytest.raises(BatchError, match="forward pass"):
        doctor.audit(model, wrong)
    same(before, snapshot(model))
    assert torch.overrides._len_torch_function_stack() == 0


def test_attributes_that_forward_changes_come_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.calls, self.seen = nn.Linear(3, 2), 0, []

        def forward(self, x):
            self.calls += 1
            self.seen.append(self.calls)
            self.cache = x
            return self.fc(x)
    model = Counting()
    with untouched(model):
        model(torch.randn(4, 3))
        assert model.calls == 1
    assert model.calls == 0 and model.seen == [] and not hasattr(model, "cache")


def test_containers_of_tensors_come_back():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.by_size, self.kept, self.names = nn.Linear(3, 2), {"a": torch.zeros(2)}, [torch.ones(2)], {"x"}

        def forward(self, x):
            self.by_size["a"], self.by_size["b"] = torch.ones(2), torch.ones(3)
            self.kept[0] = torch.zeros(2)
            self.names.add("y")
            return self.fc(x)
    model = Caching()
    before = model.by_size["a"], model.kept[0]
    with untouched(model):
        model(torch.randn(4, 3))
    assert list(model.by_size) == ["a"] and model.by_size["a"] is before[0] and model.kept[0] is before[1] and model.names == {"x"}


def test_the_users_own_mode_survives():
    """A torch.device context entered before and left during observation is restored as it was."""
    model = make_plain()
    with torch.device("cpu"), doctor.watch(model, every=1) as seen:
        opt = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            with torch.device("cpu"):
                loss = model(torch.randn(4, 12)).sum()
            loss.backward()
            opt.step()
    assert torch.overrides._len_torch_function_stack() == 0
    assert seen.report().recording.total_steps == 3


def test_data_parallel_is_refused_with_what_to_do():
    with pytest.raises(ProbeError, match="DistributedDataParallel"):
        doctor.watch(nn.DataParallel(make_plain()))


def test_training_goes_on_when_our_own_code_fails(monkeypatch):
    from gradcheck_doctor.observe import analysis

    def broken(*_):
        raise RuntimeError("ours")
    monkeypatch.setattr(analysis, "_measure", broken)
    model = make_plain()
    opt = torch.optim.SGD(model.parameters(), 0.1)
    with doctor.watch(model, opt) as seen:
        for _ in range(3):
            opt.zero_grad()
            model(torch.randn(4, 12)).sum().backward()
            opt.step()
    assert "ours" in str(seen.report().recording.blind_spots)


def test_compiled_models_are_watched_by_loss_gradient_and_update_only():
    model = make_plain()
    compiled = torch.compile(model, backend="eager")
    opt = torch.optim.SGD(model.parameters(), 0.1)
    with doctor.watch(compiled, opt) as seen:
        for _ in range(4):
            opt.zero_grad()
            compiled(torch.randn(4, 12)).sum().backward()
            opt.step()
    recording = seen.report().recording
    assert recording.total_steps == 4 and recording.notes["compiled"] and not recording.operations


def test_a_model_that_another_thread_runs_meanwhile_is_left_alone():
    """It runs first on every step, with gradients on: the watched thread's modules and operations are seen all the same, and only they."""
    import threading

    torch.manual_seed(0)
    model, other = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)), nn.Sequential(nn.Linear(12, 5), nn.Tanh())
    optimizer, modes = torch.optim.SGD(model.parameters(), 0.1), []

    def aside():
        other(torch.randn(4, 12)).sum().backward()
        modes.append(torch.overrides._len_torch_function_stack())
    with Monitor([model], [optimizer], every=1) as monitor:
        for _ in range(60):
            thread = threading.Thread(target=aside)
            thread.start()
            thread.join()
            model(torch.randn(6, 12)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    recording = monitor.recording()
    assert set(modes) == {0} and {o.module for o in recording.operations if o.module} == {"0", "1", "2"}
    assert all(len([s for s in o.observed if s.gradient is not None]) == 60 for o in recording.operations if o.op == "linear")
