"""A forgotten activation goes between the layers, however these are made, and none behind the last."""
import pytest

from gradcheck_doctor.errors import TreatmentRefused
from tests.treatments.test_styles import check, cured

HEAD = "import torch\nfrom torch import nn\n"
NET = "class Net(nn.Module):\n    def __init__(self, sizes{more}):\n        super().__init__()\n{made}\n    def forward(self, x):\n{run}        return {out}\n"
LOOP = "        for layer in self.layers:\n            x = layer(x)\n"
HIDDEN, OUT = "nn.Linear(i, o)", "nn.Linear(8, 2)"


def net(made, run="", out="self.out(x)", more=""):
    return HEAD + NET.format(made=made + "\n" if made else "", run=run, out=out, more=more)


LIST = "        self.layers = nn.ModuleList([nn.Linear(i, o) for i, o in sizes])\n        self.out = nn.Linear(8, 2)"
WHOLE = "        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in sizes)"
STYLES = {
    "a Sequential": (HEAD + "net = nn.Sequential(nn.Linear(i, o), nn.Linear(8, 2))\n", HIDDEN, OUT, "(i, o),", "(i, o), nn.ReLU(),"),
    "a grown list": (HEAD + "layers = []\nfor i, o in sizes:\n    layers.append(nn.Linear(i, o))\nlayers.append(nn.Linear(8, 2))\nnet = nn.Sequential(*layers)\n",
                     HIDDEN, OUT, "(i, o))\n", "(i, o))\n    layers.append(nn.ReLU())\n"),
    "a list that grows by lists": (HEAD + "layers = []\nfor i, o in sizes:\n    layers += [nn.Linear(i, o)]\nnet = nn.Sequential(*layers, nn.Linear(8, 2))\n",
                                   HIDDEN, OUT, "(i, o)]", "(i, o), nn.ReLU()]"),
    "a comprehension": (HEAD + "net = nn.Sequential(*[nn.Linear(i, o) for i, o in sizes], nn.Linear(8, 2))\n", HIDDEN, OUT,
                        HIDDEN, "nn.Sequential(nn.Linear(i, o), nn.ReLU())"),
    "a list that forward goes through": (net(LIST, LOOP), HIDDEN, OUT, "x = layer(x)", "x = torch.relu(layer(x))"),
    "an identity beside it": (HEAD + "net = nn.Sequential(nn.Linear(i, o), nn.Identity(), nn.Linear(8, 2))\n", HIDDEN, OUT, "nn.Identity()", "nn.ReLU()"),
    "an identity that is chosen": (HEAD + "ACTS = {'none': nn.Identity, 'relu': nn.ReLU}\ndef make(act='none'):\n    def unit():\n        "
                                          "return nn.Sequential(nn.Linear(i, o), ACTS[act]())\n    return nn.Sequential(unit(), nn.Linear(8, 2))\n",
                                   HIDDEN, OUT, "act='none'", "act='relu'"),
    "an identity by default": (HEAD + "def make(act=nn.Identity):\n    return nn.Sequential(nn.Linear(i, o), act(), nn.Linear(8, 2))\n", HIDDEN, OUT,
                               "act=nn.Identity", "act=nn.ReLU"),
    "an identity as attribute": (net("        self.act = nn.Identity()\n" + LIST, LOOP.replace("layer(x)\n", "self.act(layer(x))\n")), HIDDEN, OUT,
                                 "nn.Identity()", "nn.ReLU()")}


@pytest.mark.parametrize("style", STYLES)
def test_the_activation_goes_between_the_layers(tmp_path, style):
    text, hidden, out, old, new = STYLES[style]
    check(tmp_path, text, text.replace(old, new, 1), "add-activation", layers=[("0", "linear", hidden), ("1", "linear", out)], modules=("1",), where=hidden)


@pytest.mark.parametrize(("text", "after"), [
    (net(WHOLE, LOOP, "x"), lambda t: t.replace("in self.layers:", "in self.layers[:-1]:").replace("layer(x)\n", "torch.relu(layer(x))\n        x = self.layers[-1](x)\n")),
    (HEAD + "layers = []\nfor i, o in sizes:\n    layers.append(nn.Linear(i, o))\nnet = nn.Sequential(*layers)\n",
     lambda t: t.replace("(i, o))\n", "(i, o))\n    layers.append(nn.ReLU())\n").replace("*layers)", "*layers[:-1])"))])
def test_the_last_of_a_loop_is_spared(tmp_path, text, after):
    check(tmp_path, text, after(text), "add-activation", layers=[("0", "linear", HIDDEN), ("1", "linear", HIDDEN)], modules=("1",), where=HIDDEN)


def test_a_comprehension_that_makes_the_last_layer_too_is_refused(tmp_path):
    text = HEAD + "net = nn.Sequential(*[nn.Linear(i, o) for i, o in sizes])\n"
    with pytest.raises(TreatmentRefused, match="makes the last layer, too"):
        cured(tmp_path, text, "add-activation", layers=[("0", "linear", HIDDEN), ("1", "linear", HIDDEN)], modules=("1",), where=HIDDEN)
