"""Where the gradient ends, and whether that does harm: each fault beside a look-alike that must stay quiet."""
import copy
import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradcheck_doctor as doctor
from gradcheck_doctor.integrations.script import run_script
from gradcheck_doctor.rules.engine import diagnose

X = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def step(model, opt, i, loss=F.cross_entropy):
    opt.zero_grad()
    loss(model(X[i]), Y[i]).backward()
    opt.step()


def found(model, do=step, opt=None, steps=24):
    """The findings of GD303 in a run of `do`."""
    opt = opt or torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with doctor.watch(model, opt) as seen:
        for k in range(steps):
            do(model, opt, torch.arange(32) + 32 * (k % 8))
    return [f for f in seen.report().findings if f.rule == "no-gradient"]


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


class Net(nn.Module):
    """`between` takes (net, x) to what the head gets; `aside` is a second branch."""

    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh())
        self.aside = nn.Linear(16, 16)
        self.table = nn.Embedding(16, 16)
        self.head = nn.Linear(16, 3)
        self.between = between

    def forward(self, x):
        return self.head(self.between(self, x))


# -- thrown away -------------------------------------------------------------------------------------------------------------------------
ZERO = {"optimizer": lambda m, o: o.zero_grad(), "model": lambda m, o: m.zero_grad(), "zeros": lambda m, o: o.zero_grad(set_to_none=False)}


@pytest.mark.parametrize("zero", ZERO.values(), ids=ZERO)
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_gradients_that_are_cleared_before_the_step(zero, make):
    def late(model, opt, i):
        F.cross_entropy(model(X[i]), Y[i]).backward()
        zero(model, opt)
        opt.step()
    model = mlp()
    finding, = found(model, late, make(model.parameters(), 0.1))
    assert finding.severity == "error" and "set to zero between backward and step" in finding.message
    assert finding.location.file == __file__


def accumulate(model, opt, i):
    for part in i.chunk(4):
        F.cross_entropy(model(X[part]), Y[part]).backward()
    opt.step()
    opt.zero_grad()


def in_a_closure(model, opt, i):
    def closure():
        opt.zero_grad()
        loss = F.cross_entropy(model(X[i]), Y[i])
        loss.backward()
        return loss
    opt.step(closure)


@pytest.mark.parametrize("do", [accumulate, in_a_closure])
def test_gradients_that_are_there_at_the_step(do):
    assert found(mlp(), do) == []


def test_an_optimizer_that_keeps_its_gradients_itself():
    class Own(torch.optim.SGD):
        def keep(self):
            self.kept = [p.grad.clone() for p in self.param_groups[0]["params"]]

        @torch.no_grad()
        def step(self):
            for p, kept in zip(self.param_groups[0]["params"], self.kept, strict=True):
                p -= 0.1 * kept

    def do(model, opt, i):
        F.cross_entropy(model(X[i]), Y[i]).backward()
        opt.keep()
        opt.zero_grad()
        opt.step()
    model = mlp()
    assert found(model, do, Own(model.parameters(), 0.1)) == []


def test_two_players_clear_each_others_gradients():
    torch.manual_seed(0)
    maker, critic = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    first, second = torch.optim.Adam(maker.parameters(), 1e-3), torch.optim.Adam(critic.parameters(), 1e-3)
    with doctor.watch([maker, critic], [first, second]) as seen:
        for _ in range(40):
            made = maker(torch.randn(32, 4))
            (critic(made.detach()).mean() - critic(X[:32]).mean()).backward()
            second.step()
            second.zero_grad()
            (-critic(made).mean()).backward()
            second.zero_grad()
            first.step()
            first.zero_grad()
    assert not seen.report().has("no-gradient")


# -- no way to the loss ------------------------------------------------------------------------------------------------------------------
def unused(net, x):
    h = net.body(x)
    net.kept = net.aside(h)
    return h


def test_a_layer_whose_output_is_not_used_is_information():
    finding, = found(Net(unused))
    assert finding.severity == "info" and finding.evidence["parameters"] == ["aside.weight", "table.weight"][:finding.evidence["count"]]
    assert "freeze or remove" in finding.message


def overwritten(net, x):
    h = net.body(x)
    y = net.aside(h) + 1
    y[:] = h
    return y


@pytest.mark.parametrize("between", [overwritten, lambda net, x: torch.cat([net.body(x), net.aside(net.body(x))], 1)[:, :16]], ids=["written over", "cut off"])
def test_a_layer_none_of_whose_values_is_chosen_is_information(between):
    finding, = found(Net(between))
    assert (finding.severity, finding.evidence["parameters"]) == ("info", ["aside.weight"])


def test_a_dead_layer_of_which_parts_are_chosen_is_still_dead():
    net = Net(lambda net, x: net.body(x) + torch.relu(net.aside(net.body(x)) - 100.0)[:, :16])
    finding, = found(net)
    assert (finding.severity, finding.evidence["barrier"]) == ("error", "dead ReLU")


def test_a_weight_in_two_parts_is_one_weight():
    net = Net(unused)
    nn.utils.parametrizations.weight_norm(net.aside)
    finding, = found(net)
    assert (finding.severity, finding.evidence["parameters"], finding.evidence["count"], finding.module) == ("info", ["aside.weight"], 1, "aside")


CUT = {
    "argmax": lambda net, x: net.table(net.aside(net.body(x)).argmax(1)) + net.body(x),
    "topk": lambda net, x: net.table(net.aside(net.body(x)).topk(1).indices[:, 0]) + net.body(x),
    "gt": lambda net, x: (net.aside(net.body(x)) > 0).float() * net.body(x),
    "detach": lambda net, x: net.aside(net.body(x)).detach() + net.body(x),
    "numpy": lambda net, x: torch.as_tensor(net.aside(net.body(x)).detach().numpy() * 2) + net.body(x),
    "tolist": lambda net, x: torch.tensor(net.aside(net.body(x)).tolist()) + net.body(x),
    "data": lambda net, x: net.aside(net.body(x)).data + net.body(x),
    "round": lambda net, x: net.aside(net.body(x)).round() + net.body(x),
}


@pytest.mark.parametrize("op", CUT)
def test_what_cuts_a_layer_off_is_named(op):
    finding, = [f for f in found(Net(CUT[op])) if "aside" in f.modules]
    assert (finding.severity, finding.evidence["barrier"], finding.evidence["parameters"]) == ("error", op, ["aside.weight"])
    assert [f.prescription.treatment for f in finding.fixes] == {"detach": ["remove-detach"], "data": ["remove-detach"], "round": ["straight-through"]}.get(op, [])


def test_a_value_that_comes_back_from_numpy_into_a_layer():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = nn.Linear(8, 6), nn.Linear(6, 4)

        def forward(self, x):
            return self.head(torch.from_numpy(self.encoder(x).detach().numpy().clip(0)))

    torch.manual_seed(0)
    finding, = found(Pooled())
    assert (finding.severity, finding.evidence["barrier"], finding.evidence["parameters"]) == ("error", "numpy", ["encoder.weight"])


THROUGH = {
    "straight through": lambda net, x: (h := net.aside(net.body(x))) + (h.round() - h).detach(),
    "a metric": lambda net, x: (net.aside(h := net.body(x)).argmax(1).float().mean(), net.aside(h))[1],
}


@pytest.mark.parametrize("between", THROUGH.values(), ids=THROUGH)
def test_a_way_around_a_barrier_is_enough(between):
    assert not any("aside" in f.modules for f in found(Net(between)))


# -- under no_grad -----------------------------------------------------------------------------------------------------------------------
def dark(net, x):
    with torch.no_grad():
        h = net.body(x)
        h = h * 2
    return net.aside(h)


def test_a_body_under_no_grad():
    finding, = found(Net(dark))
    assert (finding.severity, finding.evidence["parameters"]) == ("error", ["body.0.weight"])
    assert "no_grad" in finding.message and finding.location.line == dark.__code__.co_firstlineno + 1
    assert finding.fixes[0].prescription.treatment == "leave-no-grad"


def test_a_body_that_is_in_no_optimizer_may_run_under_no_grad():
    net = Net(dark)
    assert found(net, opt=torch.optim.SGD([*net.aside.parameters(), *net.head.parameters()], 0.1)) == []
    net = Net(dark)
    net.body.requires_grad_(False)
    assert found(net) == []


class Pair(nn.Module):
    """A student and a teacher that runs under no_grad; the teacher's output is only compared, or (`feeds`) goes into the head."""

    def __init__(self, feeds, moves):
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Linear(8, 8)
        self.teacher = nn.Linear(8, 8) if not moves else copy.deepcopy(self.student)
        self.head, self.feeds, self.moves = nn.Linear(8, 3), feeds, moves

    def forward(self, x):
        with torch.no_grad():
            if self.moves:
                self.teacher.weight.lerp_(self.student.weight, 0.1)
            aim = self.teacher(x)
        h = self.student(x)
        self.extra = F.mse_loss(h, aim)
        return self.head(h + aim if self.feeds else h)


@pytest.mark.parametrize(("feeds", "moves"), [(False, True), (False, False), (True, True)])
def test_teachers_and_targets_are_no_fault(feeds, moves):
    def do(model, opt, i):
        opt.zero_grad()
        out = model(X[i])
        (F.cross_entropy(out, Y[i]) + model.extra).backward()
        opt.step()
    assert [f for f in found(Pair(feeds, moves), do) if f.severity != "info"] == []


def test_a_validation_is_no_training():
    def do(model, opt, i):
        with torch.no_grad():
            model(X[i])
        step(model, opt, i)
    assert found(mlp(), do) == []


SCRIPT = """\
import torch
from torch import nn
torch.manual_seed(0)
def body():
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 16))
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = body(), nn.Linear(16, 4)
    def forward(self, x):
        {forward}
        return self.head(h)
net = Net()
{load}
opt = torch.optim.Adam(net.parameters(), 1e-2)
for _ in range(20):
    x = torch.randn(64, 8)
    loss = nn.functional.cross_entropy(net(x), x[:, :4].argmax(1))
    opt.zero_grad(); loss.backward(); opt.step()
"""


@pytest.mark.parametrize("forward", ["h = self.body(x).detach()", "with torch.no_grad(): h = self.body(x)"])
@pytest.mark.parametrize(("load", "severity"), [("", "error"), (
    "import io; file = io.BytesIO(); torch.save({k: v + 0.1 for k, v in body().state_dict().items()}, file); file.seek(0); "
    "net.body.load_state_dict(torch.load(file))", "info")])
def test_pretrained_features_are_cut_off_on_purpose(tmp_path, forward, load, severity):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT).format(forward=forward, load=load))
    finding, = [f for f in diagnose(run_script(str(script), None, []).recording) if f.rule == "no-gradient"]
    assert finding.severity == severity and (finding.location.file, finding.location.line) == (str(script), 11)


def test_steps_that_a_scaler_leaves_out():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def do(model, opt, i):
        opt.zero_grad()
        scaler.scale(F.cross_entropy(model(X[i]), Y[i]) * (float("inf") if i[0] % 64 else 1.0)).backward()
        scaler.step(opt)
        scaler.update()
    assert found(mlp(), do) == []


# -- gates that start at 0 ---------------------------------------------------------------------------------------------------------------
class Gated(nn.Module):
    """Three blocks x + gate(alpha) * f(x)."""

    def __init__(self, shape, gate, alpha=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(3))
        self.alphas = nn.ParameterList(nn.Parameter(torch.full(shape, alpha)) for _ in range(3))
        self.gate, self.head = gate, nn.Linear(8, 3)

    def forward(self, x):
        for block, alpha in zip(self.blocks, self.alphas):
            x = x + self.gate(alpha) * block(x)
        return self.head(x)


@pytest.mark.parametrize(("shape", "gate"), [((), lambda a: a), ((1,), torch.tanh), ((), lambda a: a.view(1, 1))])
def test_a_branch_that_a_gate_of_zeros_hides_is_info_before_any_step(shape, gate):
    findings = [f for f in doctor.audit(Gated(shape, gate), (X, Y), loss=F.cross_entropy).findings if f.code == "GD303"]
    assert [f.severity for f in findings] == ([] if shape else ["info"])             # behind a vector of zeros a probe takes a few steps
    assert all("multiplied by a parameter that starts at 0" in f.message for f in findings)


def test_a_branch_that_a_constant_of_zero_hides_is_not():
    findings = [f for f in doctor.audit(Gated((), lambda a: 0.0 * a, 1.0), (X, Y), loss=F.cross_entropy).findings if f.code == "GD303"]
    assert [f.severity for f in findings] == ["error"]
