"""What only looks like a fault: losses around 0, two optimizers one after the other, networks that a solver calls again and again, a skip in the loss."""
import random

import pytest
import torch
import torch.nn.functional as F
from loops import fitted
from torch import nn

import gradcheck_doctor as doctor
from gradcheck_doctor.records.recording import Event, LossRecord, ModuleRecord, Operation, OptimizerRecord, ParameterRecord, ParameterStep, Recording, StepRecord
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.records.summaries import Units
from gradcheck_doctor.rules.engine import diagnose
from gradcheck_doctor.rules.recurrent.cures import recurrent_operations

W = ParameterRecord("cell.weight", "cell", "weight", (8, 8), 64, True, rms=1.0)


def run(curve, norms=(), optimizer=lambda step: 0, **more):
    """A recording of a run with these losses, gradient norms and updates of a twentieth of the weight."""
    steps = tuple(StepRecord(i, loss, n, optimizer=optimizer(i)) for i, (loss, n) in enumerate(zip(curve, norms or [1.0] * len(curve), strict=True)))
    optimizers = tuple(OptimizerRecord("SGD", ()) for _ in {s.optimizer for s in steps})
    return Recording("run", parameters=(W,), trainable_count=64, steps=steps, curve=tuple(enumerate(curve)), total_steps=len(curve), optimizers=optimizers,
                     parameter_steps={W.name: tuple(ParameterStep(i, 1.0, update_ratio=0.05) for i in range(len(curve)))}, **more)


def the(recording, rule):
    return next((f for f in diagnose(recording) if f.rule == rule), None)


@pytest.mark.parametrize(("middle", "severity"), [(1.5, "warning"), (0.0, None)])
def test_a_loss_around_0_is_not_said_to_oscillate(middle, severity):
    draw = random.Random(0)
    found = the(run([middle + draw.uniform(-1, 1) for _ in range(100)]), "loss-oscillation")
    assert (found.severity if found else None) == severity


# -- dead units ----------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("dead", "severity"), [(8, "info"), (12, "warning"), (20, "error")])
def test_a_part_of_a_layer_that_died_is_no_cause(dead, severity):
    units = {"units_first": Units(32, 2000), "units_last": Units(32, 2000, dead=dead)}
    layers = (Operation(0, "linear", "layer", "a", "Linear", parameters=(W.name,)), Operation(1, "relu", "activation", "b", "ReLU", producers=(0,), **units),
              Operation(2, "linear", "layer", "c", "Linear", producers=(1,)))
    assert the(run([1.0] * 100, operations=layers), "dead-relu").severity == severity


# -- gradient norms ----------------------------------------------------------------------------------------------------------------------
CELL = {"operations": (Operation(0, "gru", "recurrent", "cell", "GRU", parameters=(W.name,), shape=(4, 30, 8), attributes={"batch_first": True}),),
        "modules": (ModuleRecord("cell", "GRU", parameters=(W.name,)),)}


def unclipped(norms, **more):
    return the(run([1.0 + 0.01 * (i % 2) for i in range(len(norms))], norms, **CELL, **more), "unclipped-recurrent")


def test_norms_of_two_optimizers_one_after_the_other_are_not_compared():
    assert unclipped([0.1] * 60 + [8.0] * 40, optimizer=lambda i: int(i >= 60)).severity == "info"


@pytest.mark.parametrize(("norms", "severity", "said"), [
    ([1.0] * 40 + [30.0] + [1.0] * 20, "warning", "1 gradient spikes, the largest 30 times"), ([50.0, 40.0] + [1.0] * 60, "warning", "within its first 20 steps"),
    ([1.0 * 1.06**i for i in range(100)], "info", "")], ids=["a spike", "an early blow", "a slow rise"])
def test_a_warning_names_what_was_seen(norms, severity, said):
    found = unclipped(norms)
    assert found.severity == severity and said in found.message and "0 gradient spikes" not in found.message


@pytest.mark.parametrize(("threshold", "offered"), [(None, ("clip-by-norm", 1.0)), (10.0, ("clip-threshold", 1.0)), (0.5, None)])
def test_a_clip_that_is_there_is_lowered_and_not_added(threshold, offered):
    norms = [1.0 if i % 30 else 40.0 for i in range(1, 101)]
    line = Span("t.py", 3)
    events = () if threshold is None else (Event("clip_norm", 0, span=line, value=threshold, before=1.0),)
    fixes = the(run([1.0] * 100, norms, events=events), "gradient-spike").fixes
    chosen = [(f.prescription.treatment, f.prescription.arguments["max_norm"]) for f in fixes]
    assert chosen == ([offered] if offered else [])
    assert threshold != 10.0 or fixes[0].prescription.span == line


# -- recurrences -------------------------------------------------------------------------------------------------------------------------
class Loop(nn.Module):
    """`move` takes (net, x_t, h) to the next h."""

    def __init__(self, move):
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.own, self.gate, self.both = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(22, 16)
        self.deep = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
        self.cells = nn.ModuleList([nn.RNNCell(6, 16), nn.GRUCell(6, 16)])
        self.head, self.move = nn.Linear(16, 3), move

    def forward(self, x):
        h = x.new_zeros(len(x), 16) + self.enter(x[:, 0])
        for x_t in x.unbind(1):
            h = self.move(self, x_t, h)
        return self.head(h)


def gated(net, x, h):
    z = torch.sigmoid(net.gate(h))
    return z * h + (1 - z) * torch.tanh(net.own(z * h) + net.enter(x))


def sampled(net, x, h):
    slope, = torch.autograd.grad(net.deep(h).sum(), h, create_graph=True)
    return h - 0.1 * slope


MOVES = {
    "plain": (lambda net, x, h: torch.tanh(net.enter(x) + net.own(h)), {"own"}),
    "one weight": (lambda net, x, h: torch.tanh(net.both(torch.cat([x, h], 1))), {"both"}),
    "gated": (gated, {"own", "gate"}),
    "RNNCell": (lambda net, x, h: net.cells[0](x, h), {"cells.0"}),
    "GRUCell": (lambda net, x, h: net.cells[1](x, h), {"cells.1"}),
    "a solver": (lambda net, x, h: h + 0.1 * net.deep(h), set()),
    "a sampler": (sampled, set()),
}


@pytest.mark.parametrize(("move", "layers"), MOVES.values(), ids=MOVES)
def test_a_recurrence_is_a_layer_that_maps_its_own_output_on(move, layers):
    report = doctor.audit(Loop(move), (torch.randn(16, 12, 6), torch.randint(0, 3, (16,))), F.cross_entropy)
    assert {o.module for o in recurrent_operations(report.recording)} == layers
    assert layers or not any(report.has(rule) for rule in ("recurrent-init", "unclipped-recurrent", "temporal-gradient"))


# -- selu --------------------------------------------------------------------------------------------------------------------------------
def selu(loss, block=lambda f, x: f(x), std=1.0):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.head = nn.ModuleList(nn.Linear(64, 64) for _ in range(6)), nn.Linear(64, 1)

        def forward(self, x):
            for layer in self.layers:
                x = block(lambda x, layer=layer: torch.selu(layer(x)), x)
            return self.head(x)
    torch.manual_seed(0)
    net = Net()
    for layer in net.layers:
        nn.init.normal_(layer.weight, std=std / 8)
        nn.init.zeros_(layer.bias)
    report = doctor.audit(net, (torch.randn(256, 64), torch.randn(256)), loss)
    return next((f for f in report.findings if f.rule == "selu-conditions"), None)


def ranking(out, y):
    out = out.squeeze(1)
    return (out - out.logsumexp(0)).mean()


def test_a_difference_in_the_loss_is_no_skip_and_a_small_drift_no_finding():
    assert selu(ranking) is None
    skips = selu(F.mse_loss, lambda f, x: x + f(x))
    assert skips is not None and "the network has skips" in skips.evidence["broken"]
    assert "skips" not in str(selu(ranking, std=0.3).evidence["broken"])


# -- losses that need not fall -----------------------------------------------------------------------------------------------------------
def spiking(behind, floor=-1.0, op="scalar"):
    """Severity of `gradient-spike` where three gradients are 30 times the usual; `behind` is added to the loss after each."""
    draw = random.Random(0)
    spikes = (40, 70, 100)
    curve = [max(draw.gauss(0.0, 1.0), floor) + behind * sum(i > s for s in spikes) for i in range(140)]
    norms = [30.0 if i in spikes else 1.0 for i in range(140)]
    return the(run(curve, norms, losses=(LossRecord(-1, op),)), "gradient-spike").severity


def test_spikes_of_a_policy_that_do_no_harm_are_information():
    assert spiking(0.0) == "info"


@pytest.mark.parametrize("options", [{"behind": 8.0}, {"behind": 0.0, "floor": 0.0}, {"behind": 0.0, "op": "cross_entropy"}])
def test_spikes_that_raise_the_loss_or_of_a_loss_that_should_fall_are_not(options):
    assert spiking(**options) == "warning"


# -- biases of the output ------------------------------------------------------------------------------------------------------------------
X512 = torch.randn(512, 12, generator=torch.Generator().manual_seed(1))
COUNTS = torch.tensor([1200.0, 400.0, 200.0, 120.0, 80.0])
BIASES = {"counts": (COUNTS, True), "log of the counts": (COUNTS.log(), False), "log of the shares": ((COUNTS / COUNTS.sum()).log(), False),
          "the same for all": (torch.full((5,), 300.0), False), "a rare class": ((torch.tensor([0.999, *[0.00025] * 4])).log(), False)}


@pytest.mark.parametrize("name", BIASES)
def test_biases_that_decide_the_answers_are_named_and_priors_are_not(name):
    values, sick = BIASES[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.ELU(), nn.Linear(32, 5))
    with torch.no_grad():
        model[2].bias.copy_(values)
    y = torch.multinomial(COUNTS, 512, replacement=True)
    report = fitted(model, ((X512[i], y[i]) for i in torch.randperm(512).split(32)), F.cross_entropy)
    found = [f for f in report.findings if f.severity != "info"]
    assert ("bias-init" in [f.rule for f in found]) == sick
    if sick:
        assert found[0].rule == "bias-init" and "they decide the answers" in found[0].message and found[0].module == "2"
        assert found[0].fixes[0].prescription.arguments == {"scheme": "zero output bias"}


def test_the_prior_of_a_detector_is_none_of_these():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.ELU(), nn.Linear(32, 1))
    nn.init.constant_(model[2].bias, -4.6)
    y = (torch.rand(512, 1) < 0.01).float()
    report = fitted(model, ((X512[i], y[i]) for i in torch.randperm(512).split(32)), F.binary_cross_entropy_with_logits)
    assert "bias-init" not in [f.rule for f in report.findings]
