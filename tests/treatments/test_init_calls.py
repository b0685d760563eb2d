"""The initialiser that the user wrote is called where it takes effect."""
import pytest

from gradcheck_doctor.errors import TreatmentRefused
from tests.treatments.test_styles import check, cured

LAYER = "nn.Linear(4, 4)"
ONE = "def init_weights(m):\n    if isinstance(m, nn.Linear):\n        nn.init.kaiming_normal_(m.weight)\n"
ALL = "def init_weights(net):\n    for m in net.modules():\n        if isinstance(m, nn.Linear):\n            nn.init.kaiming_normal_(m.weight)\n"
NET = ("from torch import nn\n{before}class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n{early}        self.a = nn.Linear(4, 4)\n{late}"
       "{method}\n    def forward(self, x):\n        return self.a(x)\nnet = Net()\n")
METHOD = "\n    def init_weights(self{more}):\n        nn.init.kaiming_normal_(self.a.weight)\n"
EMPTY = {"before": "", "early": "", "late": "", "method": ""}


def net(**parts):
    return NET.format(**{**EMPTY, **parts})


CASES = {
    "a function of one layer": ({"before": ONE}, {"late": "        self.apply(init_weights)\n"}),
    "a function of a model": ({"before": ALL}, {"late": "        init_weights(self)\n"}),
    "a method": ({"method": METHOD.format(more="")}, {"late": "        self.init_weights()\n"}),
    "a method of one layer": ({"method": METHOD.format(more=", m")}, {"late": "        self.apply(self.init_weights)\n"}),
    "a method with a default": ({"method": METHOD.format(more=", std=0.1")}, {"late": "        self.init_weights()\n"})}


@pytest.mark.parametrize("case", CASES)
def test_an_initialiser_that_was_never_called_is(tmp_path, case):
    parts, more = CASES[case]
    check(tmp_path, net(**parts), net(**parts, **more), "apply-init", layers=[("a", "linear", LAYER)], where=LAYER, form="never called", function="init_weights")


def test_an_apply_in_front_of_the_layers_moves_behind_them(tmp_path):
    line = "        self.apply(init_weights)\n"
    check(tmp_path, net(before=ONE, early=line), net(before=ONE, late=line), "apply-init", where="self.apply(init_weights)", form="too early",
          function="init_weights")
    with pytest.raises(TreatmentRefused, match="behind the construction"):
        cured(tmp_path, net(before=ONE, early=line.replace("\n", "; self.x = 1\n")), "apply-init", where="self.apply(init_weights)", form="too early",
              function="init_weights")


def test_a_layer_that_came_after_the_initialiser_gets_it_too(tmp_path):
    text = net(before=ONE) + "net.apply(init_weights)\nnet.a = nn.Linear(8, 2)\n"
    check(tmp_path, text, text + "net.a.apply(init_weights)\n", "apply-init", where="nn.Linear(8, 2)", form="replaced", function="init_weights")
    with pytest.raises(TreatmentRefused, match="apply init_weights to the layer"):
        cured(tmp_path, net(method=METHOD.format(more="")) + "net.a = nn.Linear(8, 2)\n", "apply-init", where="nn.Linear(8, 2)", form="replaced",
              function="init_weights")
