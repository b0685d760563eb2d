"""Initialisation that was written against what ran: what never took effect, what was drawn twice, and the designs that look alike."""
import textwrap

import pytest
import torch
from torch import nn

from gradcheck_doctor.observe.provenance import recording_construction
from gradcheck_doctor.session import audit_target
from gradcheck_doctor.targets.resolve import resolve

HEAD = "import math\nimport torch\nfrom torch import nn\nexample_inputs = torch.randn(64, 32)\n\n\n"
NET = """class Net(nn.Module):
    def __init__(self, depth={depth}):
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))
        self.head = nn.Linear(32, 4)
{more}
    def forward(self, x):
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.head(x)


"""


def net(more="", depth=16):
    return NET.format(depth=depth, more=more)


def method(body, name="init_weights"):
    return f"\n    def {name}(self):\n" + textwrap.indent(textwrap.dedent(body).strip("\n"), "        ") + "\n"


HE = "for layer in self.hidden:\n    nn.init.kaiming_normal_(layer.weight)"
FUNCTION = """def init_weights(m):
    if {test}:
        nn.init.kaiming_normal_(m.weight)
        nn.init.zeros_(m.bias)


"""


def audit(tmp_path, source):
    path = tmp_path / "net_file.py"
    path.write_text(HEAD + source)
    (target,) = resolve(str(path))
    return audit_target(target).report


def found(report, code):
    return [f for f in report.findings if f.code == code]


def line_of(tmp_path, text):
    return next(i for i, line in enumerate((tmp_path / "net_file.py").read_text().splitlines(), 1) if text in line)


# -- never took effect ---------------------------------------------------------------------------------------------------------------------
UNMATCHED = {
    "another type": "isinstance(m, (nn.Conv1d, nn.Conv2d))", "a class, not an instance": "type(m) == 'Linear'",
    "the name in small letters": "m.__class__.__name__.find('linear') != -1", "an attribute that nobody has": "hasattr(m, 'weights')",
}


@pytest.mark.parametrize("test", UNMATCHED.values(), ids=UNMATCHED)
def test_a_test_that_matches_nothing_is_the_cause_of_a_deep_default(test, tmp_path):
    report = audit(tmp_path, FUNCTION.format(test=test) + net() + "model = Net()\nmodel.apply(init_weights)\n")
    (finding,) = found(report, "GD105")
    assert report.findings[0] is finding
    assert finding.severity == "warning"
    assert finding.location.line == line_of(tmp_path, "model.apply")
    assert "init_weights was applied but matched none of 17 layers (Linear)" in finding.message
    assert {f.fingerprint for f in report.findings if f.code == "GD102"} <= set(finding.related)


@pytest.mark.parametrize(("bias", "count"), [("", 1), ("        nn.init.zeros_(self.head.bias)\n", 0), ("        self.head.bias.data.zero_()\n", 0)])
def test_a_bias_of_one_number_is_no_constant(bias, count, tmp_path):
    source = FUNCTION.format(test=UNMATCHED["the name in small letters"]) + net(bias).replace("nn.Linear(32, 4)", "nn.Linear(32, 1)")
    report = audit(tmp_path, source + "model = Net()\nmodel.apply(init_weights)\n")
    assert len(found(report, "GD105")) == count


@pytest.mark.parametrize(("depth", "severity"), [(2, "info"), (16, "warning")])
def test_a_method_that_nobody_calls(depth, severity, tmp_path):
    report = audit(tmp_path, net(method(HE), depth))
    (finding,) = found(report, "GD105")
    assert finding.severity == severity
    assert finding.location.line == line_of(tmp_path, "def init_weights")
    assert "was not called while the model was built" in finding.message


def test_a_layer_that_replaces_an_initialised_one(tmp_path):
    report = audit(tmp_path, FUNCTION.format(test="isinstance(m, nn.Linear)") + net(depth=2) + "model = Net()\nmodel.apply(init_weights)\nmodel.head = nn.Linear(32, 9)\n")
    (finding,) = found(report, "GD105")
    assert (finding.severity, finding.module, finding.location.line) == ("info", "head", line_of(tmp_path, "model.head ="))


LINEAR = FUNCTION.format(test="isinstance(m, nn.Linear)")
QUIET = {
    "it ran": LINEAR + net() + "model = Net()\nmodel.apply(init_weights)\n",
    "the author chose": net(method(HE) + "\n    def choose(self, kind):\n        if kind == 'he':\n            self.init_weights()\n"),
    "named as text": "CHOSEN = 'init_weights'\n" + net(method(HE)),
    "torch's default spelt out": net(method(HE.replace("weight)", "weight, a=math.sqrt(5))").replace("normal", "uniform"))),
    "meant for other layers": "def init_weights(m):\n    if isinstance(m, nn.BatchNorm1d):\n        nn.init.normal_(m.weight, 1.0, 0.02)\n\n\n" + net()
                              + "model = Net().apply(init_weights)\n",
    "drawn by other means": "def init_weights(m):\n    if isinstance(m, nn.Conv2d):\n        nn.init.kaiming_normal_(m.weight)\n    elif isinstance(m, nn.Linear):\n"
                            "        m.weight.data.uniform_(-1 / math.sqrt(32), 1 / math.sqrt(32))\n\n\n" + net() + "model = Net().apply(init_weights)\n",
    "biases only": "def init_weights(m):\n    if isinstance(m, nn.Conv2d):\n        nn.init.kaiming_normal_(m.weight)\n    elif isinstance(m, nn.Linear):\n"
                   "        m.bias.data.fill_(0.0)\n\n\n" + net() + "model = Net().apply(init_weights)\n",
    "no convention in the name": "def fill(m):\n    nn.init.normal_(m.weight)\n\n\n" + net(),
    "a framework stands behind": "class Base(nn.Module):\n    pass\n\n\nBase.__module__ = 'framework.models'\n" + net(method(HE)).replace("Net(nn.Module)", "Net(Base)"),
    "weights were loaded": net(method(HE), 2) + "model = Net()\nmodel.load_state_dict(Net().state_dict())\n",
    "a head beside an initialised body": LINEAR + "def build_model():\n    body = nn.Sequential(nn.Linear(32, 32), nn.ReLU())\n    body.apply(init_weights)\n"
                                                  "    return nn.Sequential(body, nn.Linear(32, 4))\n",
    "a late head with an init of its own": LINEAR + net(depth=2) + "model = Net()\nmodel.apply(init_weights)\nmodel.head = nn.Linear(32, 9)\n"
                                                                   "nn.init.normal_(model.head.weight, std=0.2)\n",
}


@pytest.mark.parametrize("source", QUIET.values(), ids=QUIET)
def test_what_looks_alike_is_left_alone(source, tmp_path):
    assert found(audit(tmp_path, source), "GD105") == []


# -- drawn twice ---------------------------------------------------------------------------------------------------------------------------
def test_the_same_apply_twice(tmp_path):
    report = audit(tmp_path, LINEAR + net(depth=2) + "model = Net()\nfor _ in range(2):\n    model.apply(init_weights)\n")
    findings = found(report, "GD106")
    assert [f.severity for f in findings] == ["info"]
    assert findings[0].location.line == line_of(tmp_path, "kaiming_normal_")
    assert "3 parameters are initialised 2 times" in findings[0].message


def test_a_general_init_over_a_special_one(tmp_path):
    report = audit(tmp_path, LINEAR + net(depth=2) + "model = Net()\nnn.init.zeros_(model.head.weight)\nmodel.apply(init_weights)\n")
    (finding,) = found(report, "GD106")
    assert finding.module == "head"
    assert finding.location.line == line_of(tmp_path, "kaiming_normal_")


ONCE = {
    "a special init after the general one": LINEAR + net(depth=2) + "model = Net()\nmodel.apply(init_weights)\nnn.init.zeros_(model.head.weight)\n",
    "tied weights": LINEAR + net("        self.hidden[1].weight = self.hidden[0].weight\n", 2) + "model = Net()\nmodel.apply(init_weights)\n",
    "a shared layer": LINEAR + "shared = nn.Linear(32, 32)\nmodel = nn.Sequential(nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared))\nmodel.apply(init_weights)\n"
                               "del shared\n",
    "torch's own reset": net(depth=2) + "model = Net()\nmodel.head.reset_parameters()\nnn.init.zeros_(model.head.bias)\n",
}


@pytest.mark.parametrize("source", ONCE.values(), ids=ONCE)
def test_what_is_drawn_once_in_effect(source, tmp_path):
    assert found(audit(tmp_path, source), "GD106") == []


def test_apply_is_torchs_own_again():
    original = nn.Module.apply
    with pytest.raises(RuntimeError), recording_construction() as log:
        assert nn.Module.apply is not original
        nn.Linear(2, 2).apply(lambda m: nn.init.zeros_(m.weight))
        raise RuntimeError
    assert nn.Module.apply is original
    assert len(log.applied) == 1


def test_a_small_head_is_a_design(tmp_path):
    """Policy heads and detectors start their last layer at 0.01: the whole gradient is scaled, none is lost from layer to layer."""
    report = audit(tmp_path, "model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))\n"
                             "for layer in model[::2]:\n    nn.init.orthogonal_(layer.weight)\nnn.init.orthogonal_(model[-1].weight, gain=0.01)\n")
    assert [f.code for f in report.findings if f.severity != "info"] == []
    head = resolve(str(tmp_path / "net_file.py"))[0].model[-1].weight.detach()
    assert torch.linalg.matrix_norm(head, 2).item() == pytest.approx(0.01, rel=1e-3)


def test_an_apply_in_front_of_the_layers_is_too_early(tmp_path):
    early = net().replace("super().__init__()\n", "super().__init__()\n        self.apply(init_weights)\n")
    (finding,) = found(audit(tmp_path, FUNCTION.format(test="isinstance(m, nn.Linear)") + early + "net = Net()\n"), "GD105")
    assert finding.severity == "warning" and "was applied before 17 layers (Linear) had been built" in finding.message
    assert finding.location.line == line_of(tmp_path, "self.apply(init_weights)")
    assert [(f.prescription.treatment, f.prescription.arguments["form"]) for f in finding.fixes] == [("apply-init", "too early")]
