"""Golden source edits in every style that people write models and training loops in: what goes in, what comes out, every other byte kept."""
import ast
import json
import textwrap
from pathlib import Path

import pytest

from gradcheck_doctor.cli.main import main
from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.codec import from_json
from gradcheck_doctor.records.findings import Finding, Fix, LayerRow, Prescription, ReportData
from gradcheck_doctor.treatments.plan import PLANNERS, planned
from gradcheck_doctor.treatments.tree import applied
from tests.treatments.test_source import span_of

HEAD = "import torch\nfrom torch import nn\n"
WEIGHTED = ("linear", "conv1d", "conv2d", "matmul", "lstm", "rnn")


def cured(tmp_path, text, treatment, *, layers=(), where=None, op="", modules=(), evidence=(), rule="x", **arguments):
    """The text after one treatment; `layers` are (module, op, expression) or (module, op, expression, init call). What comes out compiles."""
    text = textwrap.dedent(text)
    path = tmp_path / "net.py"
    path.write_text(text)

    def weight(layer):
        return {"std": 1.0, **({"init": span_of(path, text, layer[3])} if len(layer) > 3 else {})} if layer[1] in WEIGHTED else {}
    rows = tuple(LayerRow(x[0], x[1], i, True, span_of(path, text, x[2]), weight=weight(x)) for i, x in enumerate(layers))
    span = span_of(path, text, where) if where else None
    chosen = modules or tuple(dict.fromkeys(x[0] for x in layers))
    wanted = Prescription(treatment, "t", "safe", modules=chosen, span=span, arguments=arguments)
    finding = Finding("GD000", rule, "error", "m", chosen[0] if chosen else "", chosen, op, span or (rows[0].location if rows else None), dict(evidence),
                      fixes=(Fix(wanted),))
    (_, fix), = planned(ReportData(str(path), "run", {}, {}, (finding,), rows), str(path), unsafe=True)
    if fix.refusal:
        raise TreatmentRefused(fix.refusal)
    after = applied(text, fix.edits)
    compile(after, "net.py", "exec")
    return after


def check(tmp_path, before, after, treatment, **more):
    assert cured(tmp_path, before, treatment, **more) == textwrap.dedent(after)


HE = """\
for module in {owner}.modules():
    if isinstance(module, {nn}Linear):
        {nn}init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            {nn}init.zeros_(module.bias)
"""


def he(owner, indent="", nn="nn."):
    return textwrap.indent(HE.format(owner=owner, nn=nn), indent)


FIRST = "nn.Linear(4, 8)"
STYLES = {
    "sequential on one line": (HEAD + "net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))\nnet(x)\n", FIRST,
                               lambda t: t.replace("net(x)\n", he("net") + "net(x)\n")),
    "sequential moved to a device": (HEAD + "net = nn.Sequential(\n    nn.Linear(4, 8),\n    nn.ReLU(),\n).to(device)\n", FIRST, lambda t: t + he("net")),
    "class body": (HEAD + "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(4, 8)\n\n    def forward(self, x):\n"
                   "        return self.a(x)\n", FIRST, lambda t: t.replace("8)\n\n", "8)\n" + he("self", " " * 8) + "\n")),
    "loop with append": (HEAD + "layers = []\nfor i in range(3):\n    layers.append(nn.Linear(4, 8))\nnet = nn.Sequential(*layers)\n", FIRST,
                         lambda t: t + he("net")),
    "list comprehension": (HEAD + "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
                           "        self.all = nn.ModuleList([nn.Linear(4, 8) for _ in range(9)])\n", FIRST, lambda t: t + he("self", " " * 8)),
    "factory": (HEAD + "def make():\n    mods = [nn.Linear(4, 8) for _ in range(3)]\n    return nn.Sequential(*mods)\n", FIRST,
                lambda t: t.replace("    return nn.Sequential(*mods)\n", "    model = nn.Sequential(*mods)\n" + he("model", "    ") + "    return model\n")),
    "factory with tabs": (HEAD + "def make():\n\tnet = nn.Sequential(nn.Linear(4, 8))\n\treturn net\n", FIRST,
                          lambda t: t.replace("\treturn", textwrap.indent(HE.format(owner="net", nn="nn.").replace("    ", "\t"), "\t") + "\treturn")),
    "factory with tabs that returns a call": (HEAD + "def make():\n\treturn nn.Sequential(nn.Linear(4, 8))\n", FIRST, lambda t: t.replace(
        "\treturn nn.Sequential(nn.Linear(4, 8))\n", "\tmodel = nn.Sequential(nn.Linear(4, 8))\n" + textwrap.indent(
            HE.format(owner="model", nn="nn.").replace("    ", "\t"), "\t") + "\treturn model\n")),
    "add_module": (HEAD + "net = nn.Sequential()\nfor i in range(3):\n    net.add_module(f'l{i}', nn.Linear(4, 8))\nopt = torch.optim.SGD(net.parameters(), lr=1)\n",
                   FIRST, lambda t: t.replace("opt =", he("net") + "opt =")),
    "setattr": (HEAD + "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        for i in range(3):\n"
                "            setattr(self, f'fc{i}', nn.Linear(4, 8))\n", FIRST, lambda t: t + he("self", " " * 8)),
    "subclass of Linear": (HEAD + "class MyLinear(nn.Linear):\n    def __init__(self, i, o):\n        super().__init__(i, o)\n\n\nnet = nn.Sequential(MyLinear(4, 8))\n",
                           "MyLinear(4, 8)", lambda t: t + he("net")),
    "a script's main": (HEAD + "def main():\n    net = nn.Sequential(nn.Linear(4, 8))\n    loss = net(x).sum()\n    return loss\n", FIRST,
                        lambda t: t.replace("    loss =", he("net", "    ") + "    loss =")),
    "LightningModule": ("import torch\nimport pytorch_lightning as pl\nfrom torch import nn\nclass Lit(pl.LightningModule):\n    def __init__(self):\n"
                        "        super().__init__()\n"
                        "        self.save_hyperparameters()\n        self.a = nn.Linear(4, 8)\n\n    def configure_optimizers(self):\n"
                        "        return torch.optim.SGD(self.parameters(), lr=0.1)\n", FIRST, lambda t: t.replace("8)\n\n", "8)\n" + he("self", " " * 8) + "\n")),
}


@pytest.mark.parametrize("style", STYLES)
def test_one_loop_where_the_model_is_built(tmp_path, style):
    text, expression, expected = STYLES[style]
    more = {"layers": [("0", "linear", expression)], "scheme": "he normal"}
    assert cured(tmp_path, text, "initialise", **more) == expected(text)
    with pytest.raises(TreatmentRefused, match="already"):
        cured(tmp_path, expected(text), "initialise", **more)


@pytest.mark.parametrize(("imports", "nn"), [
    ("import torch.nn as nn\n", "nn."), ("from torch import nn\n", "nn."), ("from torch.nn import *\n", ""), ("import torch\n", "torch.nn."),
    ("import torch as th\n", "th.nn."), ("import torch.nn\n", "torch.nn."), ("from torch import nn as layers\n", "layers.")])
def test_names_follow_the_files_imports(tmp_path, imports, nn):
    text = f"{imports}net = {nn}Sequential({nn}Linear(4, 8))\n"
    after = cured(tmp_path, text, "initialise", layers=[("0", "linear", f"{nn}Linear(4, 8)")], scheme="he normal")
    assert after == text + he("net", nn=nn)
    scope = {}
    exec(after, scope)
    assert scope["net"][0].bias.abs().max() == 0


def test_an_import_is_added_only_where_it_is_missing(tmp_path):
    text = '"""Doc."""\nfrom __future__ import annotations\nimport math\nfrom torch.nn import Linear, Sequential\nnet = Sequential(Linear(4, 8))\n'
    after = cured(tmp_path, text, "initialise", layers=[("0", "linear", "Linear(4, 8)")], scheme="he normal")
    assert after == text.replace("from torch.nn", "import torch\nfrom torch.nn") + he("net", nn="torch.nn.")
    exec(after, {})


def test_a_block_used_by_a_net_gets_its_loop_in_the_net(tmp_path):
    text = HEAD + ("class Block(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(4, 4)\n\n"
                   "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.blocks = nn.ModuleList(Block() for _ in range(9))\n"
                   "        self.head = nn.Linear(4, 1)\n")
    layers = [("blocks.0.a", "linear", "nn.Linear(4, 4)"), ("head", "linear", "nn.Linear(4, 1)")]
    assert cured(tmp_path, text, "initialise", layers=layers, scheme="he normal") == text + he("self", " " * 8)


def test_no_place_means_a_refusal_that_shows_the_lines(tmp_path):
    text = HEAD + "def go():\n    return train([nn.Linear(4, 8)])\n"
    with pytest.raises(TreatmentRefused, match="(?s)put this behind.*for module in model.modules"):
        cured(tmp_path, text, "initialise", layers=[("0", "linear", FIRST)], scheme="he normal")


CHOSEN = "for p in net.parameters():\n    if scheme == 'zeros':\n        nn.init.zeros_(p)\n"
OPTIMIZER = "opt = torch.optim.SGD(net.parameters(), lr=1)\n"
OWN = {
    "one call in a loop": ("for l in net:\n    nn.init.normal_(l.weight, std=0.02)\n", "nn.init.normal_(l.weight, std=0.02)",
                           'for l in net:\n    nn.init.kaiming_normal_(l.weight, nonlinearity="relu")\n'),
    "all parameters": ("for p in net.parameters():\n    nn.init.zeros_(p)\n", "nn.init.zeros_(p)",
                       'for p in net.parameters():\n    nn.init.kaiming_normal_(p, nonlinearity="relu") if p.dim() > 1 else nn.init.zeros_(p)\n'),
    "all matrices": ("for n, p in net.named_parameters():\n    if 'weight' in n:\n        nn.init.uniform_(p, -0.05, 0.05)\n", "nn.init.uniform_(p, -0.05, 0.05)",
                     "for n, p in net.named_parameters():\n    if 'weight' in n:\n        nn.init.kaiming_normal_(p, nonlinearity=\"relu\")\n"),
    "a chosen scheme": (CHOSEN + OPTIMIZER, "nn.init.zeros_(p)", CHOSEN + he("net") + OPTIMIZER),
}


@pytest.mark.parametrize("style", OWN)
def test_the_users_own_init_is_corrected(tmp_path, style):
    before, call, after = OWN[style]
    head = HEAD + "net = nn.Sequential(nn.Linear(4, 8))\n"
    check(tmp_path, head + before, head + after, "initialise", layers=[("0", "linear", FIRST, call)], scheme="he normal")


def test_init_through_data_is_corrected(tmp_path):
    text = HEAD + ("net = nn.Sequential(nn.Linear(4, 8))\ndef init(m):\n    if isinstance(m, nn.Linear):\n        m.weight.data.normal_(0, 0.02)\n"
                   "        m.bias.data.fill_(-6.0)\nnet.apply(init)\n")
    layers = [("0", "linear", FIRST)]
    check(tmp_path, text, text.replace("m.weight.data.normal_(0, 0.02)", 'nn.init.kaiming_normal_(m.weight, nonlinearity="linear")'), "initialise", layers=layers,
          scheme="lecun normal")
    check(tmp_path, text, text.replace("m.bias.data.fill_(-6.0)", "nn.init.zeros_(m.bias)"), "initialise", layers=layers, scheme="zero bias")


def test_zero_bias_leaves_the_weights_alone(tmp_path):
    text = HEAD + "net = nn.Sequential(nn.Linear(4, 8))\nnn.init.kaiming_uniform_(net[0].weight)\nnn.init.constant_(net[0].bias, -6)\n"
    check(tmp_path, text, text.replace("nn.init.constant_(net[0].bias, -6)", "nn.init.zeros_(net[0].bias)"), "initialise", scheme="zero bias",
          layers=[("0", "linear", FIRST, "nn.init.kaiming_uniform_(net[0].weight)")], where="nn.init.constant_(net[0].bias, -6)")
    text = HEAD + "net = nn.Sequential(nn.Linear(4, 8))\n"
    assert cured(tmp_path, text, "initialise", layers=[("0", "linear", FIRST)], scheme="zero bias") == text + (
        "for module in net.modules():\n    if isinstance(module, nn.Linear):\n        if module.bias is not None:\n            nn.init.zeros_(module.bias)\n")


CELL = """\
    import torch
    from torch import nn
    class Cell(nn.Module):
        def __init__(self, i, h):
            super().__init__()
            self.W_x = nn.Parameter(torch.randn(i, h) * 0.1)
            self.W_h = nn.Parameter(torch.randn(h, h) * 0.4)  # recurrent

        def forward(self, x, h):
            return torch.tanh(x @ self.W_x + h @ self.W_h)
    """


def test_a_hand_written_cell_gets_orthogonal_weights(tmp_path):
    check(tmp_path, CELL, CELL.replace("# recurrent\n", "# recurrent\n            nn.init.orthogonal_(self.W_h)\n"), "initialise",
          layers=[("", "matmul", "h @ self.W_h")], scheme="orthogonal", parameter="W_h")
    linear = CELL.replace("nn.Parameter(torch.randn(h, h) * 0.4)", "nn.Linear(h, h, bias=False)")
    check(tmp_path, linear, linear.replace("# recurrent\n", "# recurrent\n            nn.init.orthogonal_(self.W_h.weight)\n"), "initialise",
          layers=[("cell.W_h", "linear", "nn.Linear(h, h, bias=False)")], scheme="orthogonal", parameter="cell.W_h.weight")
    own = CELL.replace("# recurrent", "; nn.init.normal_(self.W_h)")
    check(tmp_path, own, own.replace("nn.init.normal_(self.W_h)", "nn.init.orthogonal_(self.W_h)"), "initialise", where="nn.init.normal_(self.W_h)",
          layers=[("", "matmul", "h @ self.W_h")], scheme="orthogonal", parameter="W_h")


def test_a_parameters_draw_is_scaled(tmp_path):
    check(tmp_path, CELL, CELL.replace("torch.randn(i, h) * 0.1", "torch.randn(i, h) * (2 / (i + h))**0.5"), "initialise",
          layers=[("", "matmul", "x @ self.W_x")], scheme="glorot uniform")


RAW = {
    "he": ("W = torch.randn(i, o, generator=g)", "h @ W", "he normal", 0.0, "W = torch.randn(i, o, generator=g) * (2 / i)**0.5"),
    "leaky": ("W = torch.randn(i, o)", "h @ W", "he normal", 0.2, "W = torch.randn(i, o) * (2 / ((1 + 0.2**2) * i))**0.5"),
    "lecun": ("W = torch.randn((i, o))", "torch.matmul(h, W)", "lecun normal", 0.0, "W = torch.randn((i, o)) / i**0.5"),
    "transposed": ("W = 0.01 * torch.randn(o, 2 * i)", "F.linear(h, W)", "lecun normal", 0.0, "W = torch.randn(o, 2 * i) / (2 * i)**0.5"),
    "a leaf": ("W = torch.randn(i, o, requires_grad=True)", "h @ W", "lecun normal", 0.0, "W = (torch.randn(i, o) / i**0.5).requires_grad_(True)"),
    "in a list": ("W = torch.randn(i, o); params = [W]", "h @ params[k]", "lecun normal", 0.0, "W = torch.randn(i, o) / i**0.5; params = [W]"),
    "glorot": ("W = torch.randn(o, i)", "h @ W.t()", "glorot normal", 0.0, "W = torch.randn(o, i) * (2 / (o + i))**0.5"),
}


@pytest.mark.parametrize("style", RAW)
def test_raw_tensors_are_scaled_where_they_are_drawn(tmp_path, style):
    before, used, scheme, slope, after = RAW[style]
    rest = f"\nb = torch.zeros(o)\ndef net(h, k=0):\n    return torch.tanh({used} + b)\n"
    head = "import torch\nimport torch.nn.functional as F\ni, o, g = 4, 4, None\n"
    new = cured(tmp_path, head + before + rest, "initialise", layers=[("", "matmul", used)], scheme=scheme, slope=slope)
    assert new == head + after + rest
    scope = {}
    exec(new, scope)
    assert scope["W"].is_leaf and scope["W"].requires_grad == (style == "a leaf")


@pytest.mark.parametrize(("drawn", "scaled"), [
    ("W = torch.randn(i, o) * 5\nW.requires_grad_(True)\n", "W = torch.randn(i, o) / i**0.5\nW.requires_grad_(True)\n"),
    ("W = (5 * torch.randn(i, o)).requires_grad_()\n", "W = (torch.randn(i, o) / i**0.5).requires_grad_()\n"),
    ("W = torch.randn(i, o).requires_grad_()\n", "W = (torch.randn(i, o) / i**0.5).requires_grad_()\n"),
    ("W = torch.randn(i, o) * 5; b = torch.zeros(o)\nfor p in (W, b): p.requires_grad = True\n",
     "W = torch.randn(i, o) / i**0.5; b = torch.zeros(o)\nfor p in (W, b): p.requires_grad = True\n"),
    ("W = torch.randn(i, o) * 5; b = torch.zeros(o)\nps = [W, b]\n[p.requires_grad_() for p in ps]\n",
     "W = torch.randn(i, o) / i**0.5; b = torch.zeros(o)\nps = [W, b]\n[p.requires_grad_() for p in ps]\n")])
def test_a_batch_that_is_drawn_is_no_weight_and_neither_is_what_a_bias_is_added_to(tmp_path, drawn, scaled):
    head = "import torch\ni, o = 4, 4\nx = torch.randn(32, i)\n"
    used = "x @ ps[0]" if "ps" in drawn else "x @ W"
    rest = f"h = torch.tanh({used} + 1)\ny = h @ torch.eye(4)\n"
    assert cured(tmp_path, head + drawn + rest, "initialise", layers=[("", "matmul", used)], scheme="lecun normal") == head + scaled + rest


@pytest.mark.parametrize(("before", "after"), [
    ("F.mse_loss(net(x).softmax(dim=1), F.one_hot(y, 9).float())", "F.cross_entropy(net(x), F.one_hot(y, 9).float())"),
    ("F.mse_loss(torch.softmax(net(x), 1), hot)", "F.cross_entropy(net(x), hot)"), ("nn.MSELoss()(F.sigmoid(net(x)), hot)", "nn.CrossEntropyLoss()(net(x), hot)")])
def test_a_loss_on_raw_scores_and_no_activation_in_front_of_it(tmp_path, before, after):
    op, call = next((op, made) for op in ("softmax", "sigmoid") for made in ("net(x).softmax(dim=1)", "torch.softmax(net(x), 1)", "F.sigmoid(net(x))")
                    if made in before and op in made)
    text = HEAD + "import torch.nn.functional as F\nloss = " + before + "\n"
    check(tmp_path, text, text.replace(before, after), "score-loss", layers=[("", op, call)], where=before, to="cross_entropy", activation=op)
    with pytest.raises(TreatmentRefused, match="in front of the loss was not found"):
        cured(tmp_path, text, "score-loss", layers=[("", "relu", call)], where=before, to="cross_entropy", activation=op)


def test_weights_that_a_function_sets_later_are_drawn_behind_it(tmp_path):
    text = HEAD + ("class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(4, 4)\n"
                   "net = Net()\nreset(net)\nopt = torch.optim.SGD(net.parameters(), lr=1)\n")
    lines = ["for module in {}.modules():", "    if isinstance(module, nn.Linear):", '        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")',
             "        if module.bias is not None:", "            nn.init.zeros_(module.bias)"]
    late = text.replace("opt =", "\n".join(lines).format("net") + "\nopt =")
    early = text.replace("nn.Linear(4, 4)\n", "nn.Linear(4, 4)\n" + "".join(f"        {line}\n" for line in lines).format("self"))
    for scheme, expected in (("constant 0.1", late), ("torch default (kaiming_uniform a=sqrt(5))", early)):
        path = tmp_path / "net.py"
        path.write_text(text)
        row = LayerRow("a", "linear", 0, True, span_of(path, text, "nn.Linear(4, 4)"), weight={"std": 0.0, "scheme": scheme, "init": None})
        wanted = Prescription("initialise", "t", "safe", modules=("a",), arguments={"scheme": "he normal"})
        finding = Finding("GD101", "x", "error", "m", "a", ("a",), "linear", row.location, fixes=(Fix(wanted),))
        (_, fix), = planned(ReportData(str(path), "run", {}, {}, (finding,), (row,)), str(path), unsafe=True)
        assert applied(text, fix.edits) == expected


MODEL = """\
import torch
class Net:
    def __init__(self, sizes):
        self.ws, self.bs = [], []
        for i, o in zip(sizes, sizes[1:]):
            self.ws.append(torch.empty(i, o).normal_(0, 0.01).requires_grad_())
            self.bs.append(torch.zeros(o).requires_grad_())
    def __call__(self, x):
        for k, (w, b) in enumerate(zip(self.ws, self.bs)):
            x = torch.relu(x @ w + b)
        return x
"""
PAIRS = """\
import torch
layers = []
for i, o in [(4, 4), (4, 2)]:
    w = torch.zeros(i, o).uniform_(-9, 9)
    b = torch.zeros(o)
    layers.append((w.requires_grad_(), b.requires_grad_()))
x = torch.randn(32, 4)
for w, b in layers:
    x = torch.relu(x @ w + b)
"""


@pytest.mark.parametrize(("text", "old", "new"), [
    (MODEL, "torch.empty(i, o).normal_(0, 0.01)", "(torch.randn(i, o) * (2 / i)**0.5)"),
    (PAIRS, "torch.zeros(i, o).uniform_(-9, 9)", "torch.randn(i, o) * (2 / i)**0.5"),
    (MODEL.replace(".normal_(0, 0.01)", ""), "torch.empty(i, o)", "(torch.randn(i, o) * (2 / i)**0.5)")])
def test_weights_that_a_loop_takes_from_lists_are_scaled_where_they_are_drawn(tmp_path, text, old, new):
    check(tmp_path, text, text.replace(old, new), "initialise", layers=[("", "matmul", "x @ w")], scheme="he normal")


def test_forget_gates_start_open(tmp_path):
    text = HEAD + "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.rnn = nn.LSTM(3, 5, num_layers=2)\n"
    after = cured(tmp_path, text, "initialise", layers=[("rnn", "lstm", "nn.LSTM(3, 5, num_layers=2)")], scheme="forget gate bias", value=1.0)
    assert after == text + textwrap.indent("""\
for module in self.modules():
    if isinstance(module, nn.LSTM):
        for name, bias in module.named_parameters():
            if "bias" in name:
                size = bias.numel() // 4                      # gates: input, forget, cell, output
                nn.init.constant_(bias[size:2 * size], 1.0 if "bias_ih" in name else 0.0)
""", " " * 8)
    scope = {}
    exec(after, scope)
    rnn = scope["Net"]().rnn
    assert all((getattr(rnn, f"bias_ih_l{k}") + getattr(rnn, f"bias_hh_l{k}"))[5:10].eq(1).all() for k in (0, 1)) and rnn.bias_ih_l0[:5].abs().max() > 0


def test_output_biases(tmp_path):
    text = HEAD + "net = nn.Sequential(nn.Linear(4, 2))\nopt = torch.optim.SGD(net.parameters(), lr=1)\n"
    layers = [("0", "linear", "nn.Linear(4, 2)")]
    check(tmp_path, text, text.replace("opt", "nn.init.constant_(net[0].bias, -4.6)\nopt", 1), "initialise", layers=layers, scheme="class prior", value=-4.6)
    check(tmp_path, text, text.replace("opt", "with torch.no_grad():\n    net[0].bias.copy_(torch.tensor([-0.105, -2.3]))\nopt", 1), "initialise", layers=layers,
          scheme="class prior", values=(-0.105, -2.3))
    check(tmp_path, text, text.replace("opt", "nn.init.constant_(net[0].bias, 1200)\nopt", 1), "target-bias", layers=layers, value=1200.0)
    with pytest.raises(TreatmentRefused, match=r"copy_\(torch.log\(torch.bincount"):
        cured(tmp_path, text, "initialise", layers=layers, scheme="class prior")


@pytest.mark.parametrize(("imports", "before", "op", "to", "after"), [
    (HEAD, "nn.Tanh()", "tanh", "elu", "nn.ELU()"), (HEAD, "nn.ReLU(inplace=True)", "relu", "leaky_relu", "nn.LeakyReLU(0.01, inplace=True)"),
    (HEAD, "nn.ReLU()", "relu", "prelu", "nn.PReLU()"), (HEAD, "nn.ReLU()", "relu", "rrelu", "nn.RReLU()"), (HEAD, "nn.ReLU()", "relu", "gelu", "nn.GELU()"),
    ("from torch.nn import *\n", "Sigmoid()", "sigmoid", "relu", "ReLU()"), ("import torch\n", "torch.nn.Tanh()", "tanh", "relu", "torch.nn.ReLU()"),
    ("import torch.nn.functional as F\n", "F.relu(x)", "relu", "leaky_relu", "F.leaky_relu(x, 0.01)"),
    ("import torch.nn.functional as F\n", "F.tanh(x)", "tanh", "relu", "F.relu(x)"), ("import torch\n", "torch.tanh(f(x))", "tanh", "selu", "torch.selu(f(x))"),
    ("import torch\n", "torch.relu(x)", "relu", "elu", "torch.nn.functional.elu(x)"), (HEAD, "torch.relu(x)", "relu", "gelu", "nn.functional.gelu(x)"),
    ("import torch\n", "x.sigmoid()", "sigmoid", "relu", "torch.relu(x)"), ("import torch\n", "x.clamp(min=0)", "relu", "elu", "torch.nn.functional.elu(x)"),
    ("import torch.nn.functional as F\n", "x.relu()", "relu", "leaky_relu", "F.leaky_relu(x, 0.01)")])
def test_another_activation_in_the_files_own_words(tmp_path, imports, before, op, to, after):
    check(tmp_path, f"{imports}y = {before}\n", f"{imports}y = {after}\n", "replace-activation", layers=[("1", op, before)], op=op, to=to)


@pytest.mark.parametrize(("written", "op", "layers"), [("x * x", "square", [("act", "square", "Own()")]), ("x ** 2", "pow", []),
                                                       ("torch.exp(x)", "exp", [("act", "exp", "Own()")])])
def test_an_activation_in_a_class_of_ones_own_is_replaced_where_it_stands(tmp_path, written, op, layers):
    text = HEAD + f"class Own(nn.Module):\n    def forward(self, x):\n        return {written}\n\n\nnet = nn.Sequential(nn.Linear(4, 4), Own())\n"
    check(tmp_path, text, text.replace(written, "torch.relu(x)"), "replace-activation", layers=layers, where=written, modules=("act",), op=op, to="relu")


def test_nested_calls_are_merged(tmp_path):
    text = "import torch\ny = torch.sigmoid(b(torch.sigmoid(a(x))))\n"
    layers = [("", "sigmoid", "torch.sigmoid(a(x))"), ("", "sigmoid", "torch.sigmoid(b(torch.sigmoid(a(x))))")]
    check(tmp_path, text, text.replace("torch.sigmoid", "torch.relu"), "replace-activation", layers=layers, op="sigmoid", to="relu")


def test_selu_brings_its_initialisation(tmp_path):
    text = HEAD + "net = nn.Sequential(nn.Linear(4, 8), nn.Tanh())\n"
    layers = [("0", "linear", FIRST), ("1", "tanh", "nn.Tanh()")]
    after = text.replace("nn.Tanh()", "nn.SELU()") + he("net").replace('"relu"', '"linear"')
    check(tmp_path, text, after, "replace-activation", layers=layers, modules=("1",), op="tanh", to="selu")
    with pytest.raises(TreatmentRefused, match="SELU needs lecun normal weights as well"):
        cured(tmp_path, HEAD + "net = build(nn.Linear(4, 8), nn.Tanh())\n", "replace-activation", layers=layers, modules=("1",), op="tanh", to="selu")


def test_learnable_and_random_slopes_in_functional_form(tmp_path):
    text = HEAD + ("class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(4, 8)\n\n    def forward(self, x):\n"
                   "        return torch.relu(self.a(x))\n")
    more = {"layers": [("", "relu", "torch.relu(self.a(x))")], "op": "relu"}
    check(tmp_path, text, text.replace("8)\n\n", "8)\n        self.prelu = nn.PReLU()\n\n").replace("torch.relu(", "self.prelu("), "replace-activation", to="prelu", **more)
    check(tmp_path, text, text.replace("torch.relu(self.a(x))", "nn.functional.rrelu(self.a(x), training=self.training)"), "replace-activation", to="rrelu", **more)
    with pytest.raises(TreatmentRefused, match="PReLU has a parameter"):
        cured(tmp_path, "import torch\ny = torch.relu(x)\n", "replace-activation", layers=[("", "relu", "torch.relu(x)")], op="relu", to="prelu")


def test_a_modules_call_is_not_taken_for_its_activation(tmp_path):
    text = "h = layer(h)\n"
    with pytest.raises(TreatmentRefused, match="inside 'layer\\(h\\)'"):
        cured(tmp_path, text, "replace-activation", layers=[("", "relu", "layer(h)")], op="relu", to="elu")
    with pytest.raises(TreatmentRefused, match="inside 'layer\\(h\\)'"):
        cured(tmp_path, text, "remove-activation", where="layer(h)", layers=[("", "relu", "layer(h)")])


TABLE = 'ACTS = {"tanh": nn.Tanh, "relu": nn.ReLU}\n'
CERTAIN = {
    "a dictionary": (TABLE + 'cfg = {"act": "tanh"}\nact = ACTS[cfg["act"]]()\n', 'ACTS[cfg["act"]]()', '"act": "tanh"', '"act": "relu"'),
    "argparse": (TABLE + 'p.add_argument("--act", choices=list(ACTS), default="tanh")\na = p.parse_args()\nact = ACTS[a.act]()\n', "ACTS[a.act]()", 'default="tanh"',
                 'default="relu"'),
    "getattr": ("class Net:\n    def __init__(self, act='Tanh'):\n        self.act = getattr(nn, act)()\nNet()\n", "getattr(nn, act)()", "'Tanh'", "'ReLU'"),
    "a chain of tests": ('def act(name):\n    if name == "tanh":\n        return nn.Tanh()\n    elif name == "relu":\n        return nn.ReLU()\n'
                         'f = act("tanh")\n', "nn.Tanh()", 'act("tanh")', 'act("relu")'),
    "a table of instances": ('def act(name="tanh"):\n    return {"tanh": nn.Tanh(), "relu": nn.ReLU()}[name]\n', "nn.Tanh()", 'name="tanh"', 'name="relu"'),
    "a dataclass": ("@dataclass\nclass Cfg:\n    act: str = 'tanh'\n" + TABLE + "cfg = Cfg()\nact = ACTS[cfg.act]()\n", "ACTS[cfg.act]()", "'tanh'", "'relu'"),
    "a class as default": ("def make(act=nn.Tanh):\n    return nn.Sequential(nn.Linear(2, 2), act())\n", "act()", "act=nn.Tanh", "act=nn.ReLU"),
    "a class by name": (TABLE + 'ACT = ACTS["tanh"]\nact = ACT()\n', "ACT()", 'ACTS["tanh"]', 'ACTS["relu"]'),
}


@pytest.mark.parametrize("style", CERTAIN)
def test_a_setting_is_changed_where_its_flow_is_certain(tmp_path, style):
    text, made, old, new = CERTAIN[style]
    check(tmp_path, HEAD + text, HEAD + text.replace(old, new), "replace-activation", layers=[("1", "tanh", made)], op="tanh", to="relu")


CALLED = ("class Net(nn.Module):\n    def __init__(self, act{}):\n        super().__init__()\n        self.act = {}\n\n"
          "    def forward(self, x):\n        return self.act(x)\nnet = Net({})\n")
FUNCTIONS = {
    "a table of functions": ("ACT = {'relu': torch.relu, 'tanh': torch.tanh}\n" + CALLED.format("", "ACT[act]", "'tanh'"), "Net('tanh')", "Net('relu')"),
    "a table with a lambda": ("ACT = {'r': nn.ReLU(), 'tanh': torch.tanh}\n" + CALLED.format("='tanh'", "ACT[act]", ""), "act='tanh'", "act='r'"),
    "getattr": (CALLED.format("='tanh'", "getattr(torch, act)", ""), "act='tanh'", "act='relu'"),
    "an attribute": (CALLED.format("=1", "torch.tanh", ""), "torch.tanh", "torch.relu"),
    "a parameter": (CALLED.format("=torch.tanh", "act", ""), "torch.tanh", "torch.relu"),
    "an argument": (CALLED.format("", "act", "torch.tanh"), "torch.tanh", "torch.relu")}


@pytest.mark.parametrize("style", FUNCTIONS)
def test_a_function_that_a_variable_holds(tmp_path, style):
    text, old, new = FUNCTIONS[style]
    check(tmp_path, HEAD + text, HEAD + text.replace(old, new), "replace-activation", layers=[("", "tanh", "self.act(x)")], op="tanh", to="relu")


def test_a_lambda_in_a_table(tmp_path):
    text = HEAD + "ACT = {'relu': torch.relu, 'soft': lambda h: h.softmax(-1)}\n" + CALLED.format("", "ACT[act]", "'soft'")
    check(tmp_path, text, text.replace("Net('soft')", "Net('relu')"), "replace-activation", layers=[("", "softmax", "h.softmax(-1)")], op="softmax", to="relu")
    alone = text.replace("'relu': torch.relu, ", "")
    check(tmp_path, alone, alone.replace("h.softmax(-1)", "torch.relu(h)"), "replace-activation", layers=[("", "softmax", "h.softmax(-1)")], op="softmax", to="relu")


@pytest.mark.parametrize(("text", "made", "why"), [
    (TABLE + "act = ACTS[load()['act']]()\n", "ACTS[load()['act']]()", "can't be told where .* set it to 'relu'"),
    ('def f(name):\n    return {"tanh": nn.Tanh()}[name]\nf("tanh")\n', "nn.Tanh()", "no name for ReLU"),
    (TABLE + 'def f(n):\n    return ACTS[n]()\nf("tanh")\nf("relu")\n', "ACTS[n]()", "can't be told where"),
    ("def f(act):\n    return act()\nf(pick())\n", "act()", "can't be told what 'act' is"),
    ("act = getattr(nn, json.load(open('c'))['act'])()\n", "getattr(nn, json.load(open('c'))['act'])()", "set it to 'ReLU' there")])
def test_an_uncertain_setting_is_shown_not_changed(tmp_path, text, made, why):
    with pytest.raises(TreatmentRefused, match=why):
        cured(tmp_path, HEAD + text, "replace-activation", layers=[("1", "tanh", made)], op="tanh", to="relu")


@pytest.mark.parametrize(("op", "before", "norm", "after"), [
    ("conv2d", "nn.Conv2d(3, 32, 3)", "batch", "nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)"),
    ("conv2d", "nn.Conv2d(3, 32, 3)", "group", "nn.Conv2d(3, 32, 3), nn.GroupNorm(2, 32)"),
    ("conv2d", "nn.Conv2d(3, width, 3)", "group", "nn.Conv2d(3, width, 3), nn.GroupNorm(1, width)"),
    ("linear", "nn.Linear(3, out_features=8)", "group", "nn.Linear(3, out_features=8), nn.LayerNorm(8)"),
    ("conv1d", "nn.Conv1d(3, 8, 3)", "batch", "nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8)")])
def test_the_norm_that_fits_the_batch(tmp_path, op, before, norm, after):
    text = HEAD + f"net = nn.Sequential({before}, nn.ReLU(), nn.Flatten(), nn.Linear(8, 1))\n"
    check(tmp_path, text, text.replace(before, after), "insert-norm", layers=[("0", op, before), ("3", "linear", "nn.Linear(8, 1)")], modules=("0",), norm=norm)


@pytest.mark.parametrize(("text", "after"), [
    ("self.a = nn.Linear(4, 8)", "self.a = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))"),
    ("layers = [nn.Linear(4, 8) for _ in r]", "layers = [nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)) for _ in r]"),
    ("layers.append(nn.Linear(4, 8))", "layers.append(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)))"),
    ("layers += [nn.Linear(4, 8), nn.ReLU()]", "layers += [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()]"),
    ("net.add_module('a', nn.Linear(4, 8))", "net.add_module('a', nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)))"),
    ("return nn.Sequential(nn.Linear(4, 8), act())", "return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), act())")])
def test_a_norm_in_every_kind_of_container(tmp_path, text, after):
    head = HEAD + "def build(self, r, net, act, layers=()):\n    "
    check(tmp_path, head + text + "\n", head + after + "\n", "insert-norm", layers=[("0", "linear", FIRST)], norm="batch")


def test_a_norm_beside_an_attribute_is_called_in_forward(tmp_path):
    text = HEAD + ("class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(4, 8)\n        self.b = nn.Linear(8, 6)\n"
                   "        nn.init.zeros_(self.a.bias)\n\n    def forward(self, x):\n        return self.b(torch.relu(self.a(x)))\n")
    after = text.replace("8)\n", "8)\n        self.a_norm = nn.BatchNorm1d(8)\n").replace("6)\n", "6)\n        self.b_norm = nn.BatchNorm1d(6)\n").replace(
        "self.b(torch.relu(self.a(x)))", "self.b_norm(self.b(torch.relu(self.a_norm(self.a(x)))))")
    layers = [("a", "linear", "nn.Linear(4, 8)"), ("b", "linear", "nn.Linear(8, 6)"), ("c", "linear", "nn.Module")]
    check(tmp_path, text, after, "insert-norm", layers=layers, modules=("a", "b"), norm="batch")


def test_a_layer_whose_weight_is_asked_for_by_name_stays_what_it_is(tmp_path):
    text = HEAD + ("def build(widths):\n    layers = []\n    for w in widths:\n        fc = nn.Linear(4, 8)\n        nn.init.zeros_(fc.bias)\n"
                   "        layers += [fc, nn.ReLU()]\n    return nn.Sequential(*layers)\n")
    check(tmp_path, text, text.replace("[fc,", "[fc, nn.BatchNorm1d(8),"), "insert-norm", layers=[("0", "linear", FIRST)], norm="batch")
    text = text.replace("layers += [fc, nn.ReLU()]", "layers.append(fc)")
    after = text.replace("append(fc)\n", "append(fc)\n        layers.append(nn.BatchNorm1d(8))\n")
    check(tmp_path, text, after, "insert-norm", layers=[("0", "linear", FIRST)], norm="batch")
    text = text.replace("nn.Sequential(*layers)", "layers")
    check(tmp_path, text, text.replace("append(fc)", "append(nn.Sequential(fc, nn.BatchNorm1d(8)))"), "insert-norm", layers=[("0", "linear", FIRST)], norm="batch")
    text = HEAD + ("class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(4, 8)\n"
                   "        nn.init.zeros_(self.a.bias)\n\n    def forward(self, x):\n        return self.a(x.flatten(1))\n")
    after = text.replace("8)\n", "8)\n        self.a_norm = nn.BatchNorm1d(4)\n", 1).replace("x.flatten(1)", "self.a_norm(x.flatten(1))")
    check(tmp_path, text, after, "input-norm", layers=[("a", "linear", FIRST)], op="linear", where=FIRST)


PAIRED = HEAD + ("class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.fcs = nn.ModuleList([nn.Linear(4, 8) for _ in range(3)])\n"
                 "        for m in self.fcs:\n            nn.init.zeros_(m.bias)\n\n    def forward(self, x):\n        return x\n")


@pytest.mark.parametrize(("loop", "after"), [
    ("for m in self.fcs:\n            x = m(x).relu()", "for m, m_norm in zip(self.fcs, self.fcs_norm):\n            x = m_norm(m(x)).relu()"),
    ("for i, m in enumerate(self.fcs):\n            x = m(x)", "for i, (m, m_norm) in enumerate(zip(self.fcs, self.fcs_norm)):\n            x = m_norm(m(x))"),
    ("for i in range(3):\n            x = self.fcs[i](x)", "for i in range(3):\n            x = self.fcs_norm[i](self.fcs[i](x))")])
def test_a_list_of_layers_that_are_asked_for_their_weights_gets_a_list_of_norms(tmp_path, loop, after):
    norms = "        self.fcs_norm = nn.ModuleList([nn.BatchNorm1d(8) for _ in range(3)])\n"
    text = PAIRED.replace("return x", f"{loop}\n        return x")
    wanted = PAIRED.replace("return x", f"{after}\n        return x").replace("range(3)])\n", "range(3)])\n" + norms, 1)
    check(tmp_path, text, wanted, "insert-norm", layers=[("0", "linear", FIRST)], norm="batch")


def test_a_grown_list_of_layers_gets_a_list_of_norms(tmp_path):
    old = "self.fcs = nn.ModuleList([nn.Linear(4, 8) for _ in range(3)])"
    grown = "self.fcs = nn.ModuleList()\n        for _ in range(3):\n            self.fcs.append(nn.Linear(4, 8))"
    norms = ("self.fcs = nn.ModuleList()\n        self.fcs_norm = nn.ModuleList()\n        for _ in range(3):\n            self.fcs.append(nn.Linear(4, 8))\n"
             "            self.fcs_norm.append(nn.BatchNorm1d(8))")
    text = PAIRED.replace("return x", "for m in self.fcs:\n            x = m(x)\n        return x")
    wanted = text.replace("for m in self.fcs:\n            x = m(x)", "for m, m_norm in zip(self.fcs, self.fcs_norm):\n            x = m_norm(m(x))")
    check(tmp_path, text.replace(old, grown), wanted.replace(old, norms), "insert-norm", layers=[("0", "linear", FIRST)], norm="batch")


def test_no_sequential_takes_the_place_of_a_layer_that_is_asked_for_its_weight(tmp_path):
    text = PAIRED.replace("return x", "return functools.reduce(lambda a, m: m(a), self.fcs, x)")
    with pytest.raises(TreatmentRefused, match="asks the layer itself for its bias"):
        cured(tmp_path, text, "insert-norm", layers=[("0", "linear", FIRST)], norm="batch")
    text = text.replace("for m in self.fcs:\n            nn.init.zeros_(m.bias)", "pass")
    check(tmp_path, text, text.replace(FIRST, f"nn.Sequential({FIRST}, nn.BatchNorm1d(8))"), "insert-norm", layers=[("0", "linear", FIRST)], norm="batch")


def test_an_activation_stands_for_the_layer_in_front_of_it(tmp_path):
    text = HEAD + "net = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 1))\n"
    layers = [("0", "linear", FIRST), ("1", "sigmoid", "nn.Sigmoid()"), ("2", "linear", "nn.Linear(8, 1)")]
    check(tmp_path, text, text.replace(FIRST, FIRST + ", nn.BatchNorm1d(8)"), "insert-norm", layers=layers, modules=("1",), norm="batch")


def test_small_batches_are_prescribed_a_norm_without_them(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(SICK["sequential"] + "def get_batch():\n    return torch.randn(4, 32)\n")
    norms = [x.prescription.arguments["norm"] for f in audited(path, tmp_path, own_batch=True).findings for x in f.fixes if x.prescription.treatment == "insert-norm"]
    assert norms and set(norms) == {"group"}
    assert any("nn.LayerNorm(32)" in e.text for _, x in planned(audited(path, tmp_path, own_batch=True), str(path), unsafe=True) for e in x.edits)


def test_a_replaced_loss_is_the_one_that_was_called(tmp_path):
    text = "from torch.nn import MSELoss\nimg, cls = MSELoss(), MSELoss()\na = MSELoss()\nb = MSELoss()\nloss = b(out, y)\n"
    after = text.replace("MSELoss\n", "MSELoss, CrossEntropyLoss\n", 1).replace("b = MSELoss()", "b = CrossEntropyLoss()")
    check(tmp_path, text, after, "replace-loss", where="b(out, y)", to="cross_entropy")
    text = "import torch.nn.functional as F\nloss = F.nll_loss(out, y)\nother = F.nll_loss(out, z)\n"
    check(tmp_path, text, text.replace("F.nll_loss(out, y)", "F.cross_entropy(out, y)"), "replace-loss", where="F.nll_loss(out, y)", to="cross_entropy")


def test_a_softmax_over_one_unit(tmp_path):
    text = HEAD + "net = nn.Sequential(nn.Linear(4, 1), nn.Softmax(dim=1))\nbce = nn.BCELoss()\nprint(net(x))\n"
    more = {"where": "nn.Softmax(dim=1)", "rule": "single-unit-softmax", "op": "softmax"}
    check(tmp_path, text, text.replace(", nn.Softmax(dim=1)", "").replace("BCELoss", "BCEWithLogitsLoss"), "remove-output-activation", **more)
    read = text.replace("print(net(x))", "print(net(x) > 0.5)")
    check(tmp_path, read, read.replace("nn.Softmax(dim=1)", "nn.Sigmoid()"), "remove-output-activation", **more)


def test_a_doubled_sigmoid(tmp_path):
    text = HEAD + "out = torch.sigmoid(fc(x))\nloss = nn.BCEWithLogitsLoss()(out, y)\n"
    more = {"where": "torch.sigmoid(fc(x))", "layers": [("", "sigmoid", "torch.sigmoid(fc(x))")], "evidence": {"loss": "binary_cross_entropy_with_logits"}}
    check(tmp_path, text, text.replace("torch.sigmoid(fc(x))", "fc(x)"), "remove-output-activation", **more)
    read = text + "hits = out.round() == y\n"
    check(tmp_path, read, read.replace("BCEWithLogitsLoss", "BCELoss"), "remove-output-activation", **more)
    for squashed in ("hits = torch.sigmoid(out) > 0.5\n", "p = out.sigmoid()\nhits = p >= 0.5\n", "hits = torch.sigmoid(out).round()\n",
                     "hits = torch.round(torch.sigmoid(out))\n"):
        logits = text + squashed                                     # read as probabilities only after a sigmoid of their own
        check(tmp_path, logits, logits.replace("out = torch.sigmoid(fc(x))", "out = fc(x)", 1), "remove-output-activation", **more)


LOOP = HEAD + """\
def train(model, batches, lr=0.8):
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    for x, y in batches:
        loss = (model(x) - y).square().mean()
        loss.backward()
        opt.step()
"""
CLIP = "nn.utils.clip_grad_norm_(model.parameters(), 1.0)"


@pytest.mark.parametrize(("before", "after"), [
    ("        loss.backward()\n        opt.step()\n", f"        loss.backward()\n        {CLIP}\n        opt.step()\n"),
    ("        loss.backward(); opt.step()\n", f"        loss.backward(); {CLIP}; opt.step()\n"),
    ("        loss.backward()\n        if ready(): opt.step()\n", f"        loss.backward()\n        if ready(): {CLIP}; opt.step()\n")])
def test_clip_in_front_of_the_step(tmp_path, before, after):
    text = LOOP.replace("        loss.backward()\n        opt.step()\n", before)
    new = LOOP.replace("        loss.backward()\n        opt.step()\n", after)
    check(tmp_path, text, new, "clip-by-norm", where="opt.step()")
    check(tmp_path, text, new, "clip-by-norm")
    with pytest.raises(TreatmentRefused, match="already"):
        cured(tmp_path, new, "clip-by-norm", where="opt.step()")


def test_clip_behind_unscaling(tmp_path):
    text = LOOP.replace("opt.step()", "scaler.step(opt)")
    check(tmp_path, text, text.replace("scaler.step", f"scaler.unscale_(opt)\n        {CLIP}\n        scaler.step"), "clip-by-norm", where="scaler.step(opt)")
    scaled = text.replace("        scaler.step", "        scaler.unscale_(opt)\n        scaler.step")
    check(tmp_path, scaled, scaled.replace("        scaler.step", f"        {CLIP}\n        scaler.step"), "clip-by-norm", where="scaler.step(opt)")


def test_a_clip_that_stands_wrong_is_moved_or_unscaled(tmp_path):
    early = LOOP.replace("        loss.backward()", f"        {CLIP}\n        loss.backward()")
    right = LOOP.replace("        opt.step()", f"        {CLIP}\n        opt.step()")
    check(tmp_path, early, right, "move-clip", where=CLIP)
    scaled = right.replace("opt.step()", "scaler.step(opt)")
    check(tmp_path, scaled, scaled.replace(f"        {CLIP}", f"        scaler.unscale_(opt)\n        {CLIP}"), "unscale", where=CLIP)


TRAINERS = {
    "Lightning": ("t = pl.Trainer(max_epochs=3)", "t = pl.Trainer(max_epochs=3, gradient_clip_val=1.0)"),
    "Lightning over lines": ("t = Trainer(\n    max_epochs=3,\n)", "t = Trainer(\n    max_epochs=3, gradient_clip_val=1.0,\n)"),
    "Lightning by value": ('t = Trainer(gradient_clip_val=0.5, gradient_clip_algorithm="value")', 't = Trainer(gradient_clip_val=1.0, gradient_clip_algorithm="norm")'),
    "Hugging Face": ("a = TrainingArguments('out', max_grad_norm=1e9)\nt = Trainer(model, a)", "a = TrainingArguments('out', max_grad_norm=1.0)\nt = Trainer(model, a)"),
}


@pytest.mark.parametrize("style", TRAINERS)
def test_clip_in_a_trainer(tmp_path, style):
    before, after = TRAINERS[style]
    check(tmp_path, before + "\n", after + "\n", "clip-by-norm")
    if style == "Lightning by value":
        check(tmp_path, before + "\n", after + "\n", "clip-value-to-norm")
    if style == "Hugging Face":
        with pytest.raises(TreatmentRefused, match="max_grad_norm=1.0 unless told otherwise"):
            cured(tmp_path, before.replace(", max_grad_norm=1e9", ""), "clip-by-norm")


@pytest.mark.parametrize(("before", "after"), [
    ("nn.utils.clip_grad_value_(model.parameters(), 0.5)", "nn.utils.clip_grad_norm_(model.parameters(), 1.0)"),
    ("from torch.nn.utils import clip_grad_value_\nclip_grad_value_(ps, clip_value=0.5)", "from torch.nn.utils import clip_grad_norm_\nclip_grad_norm_(ps, 1.0)")])
def test_value_clipping_becomes_norm_clipping(tmp_path, before, after):
    check(tmp_path, HEAD + before + "\n", HEAD + after + "\n", "clip-value-to-norm")


def test_zero_grad_in_loops_closures_and_shared_lines(tmp_path):
    check(tmp_path, LOOP, LOOP.replace("        loss.backward()", "        opt.zero_grad()\n        loss.backward()"), "zero-grad", where="opt.step()")
    line = LOOP.replace("loss.backward()\n        opt", "loss.backward(); opt")
    check(tmp_path, line, line.replace("        loss.backward()", "        opt.zero_grad()\n        loss.backward()"), "zero-grad", where="opt.step()")
    closure = HEAD + "def closure():\n    loss = f()\n    loss.backward()\n    return loss\nopt.step(closure)\n"
    check(tmp_path, closure, closure.replace("    loss.backward()", "    opt.zero_grad()\n    loss.backward()"), "zero-grad", where="opt.step(closure)")
    scaled = LOOP.replace("opt.step()", "scaler.step(opt)").replace("loss.backward", "scaler.scale(loss).backward")
    check(tmp_path, scaled, scaled.replace("        scaler.scale", "        opt.zero_grad()\n        scaler.scale"), "zero-grad", where="scaler.step(opt)")
    with pytest.raises(TreatmentRefused, match="in front of backward"):
        cured(tmp_path, LOOP.replace("        opt.step()", "        opt.zero_grad()\n        opt.step()"), "zero-grad", where="opt.step()")


MADE = "torch.optim.SGD(ps, lr=lr)"
RATES = {
    "literal": ("opt = torch.optim.SGD(ps, lr=3.0)\n", "torch.optim.SGD(ps, lr=3.0)", "3.0", "0.03"),
    "positional": ("opt = torch.optim.SGD(ps, 3.0)\n", "torch.optim.SGD(ps, 3.0)", "3.0", "0.03"),
    "constant": ("lr = 3.0\nopt = torch.optim.SGD(ps, lr=lr)\n", MADE, "3.0", "0.03"),
    "missing": ("opt = torch.optim.Adam(net.parameters())\n", "torch.optim.Adam(net.parameters())", "parameters()", "parameters(), lr=0.03"),
    "dictionary": ('kw = {"lr": 3.0, "momentum": 0.9}\nopt = torch.optim.SGD(net.parameters(), **kw)\n', "torch.optim.SGD(net.parameters(), **kw)", "3.0", "0.03"),
    "argparse": ('p.add_argument("--lr", type=float, default=3.0)\nopt = torch.optim.SGD(ps, lr=args.lr)\n', "torch.optim.SGD(ps, lr=args.lr)", "3.0", "0.03"),
    "Lightning": ("class Lit:\n    def __init__(self, lr=3.0):\n        self.save_hyperparameters()\n    def configure_optimizers(self):\n"
                  "        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)\n", "torch.optim.SGD(self.parameters(), lr=self.hparams.lr)", "3.0", "0.03"),
    "Hugging Face": ("args = TrainingArguments('out', learning_rate=3.0)\n", None, "3.0", "0.03"),
    "Hugging Face, missing": ("args = TrainingArguments('out')\n", None, "'out'", "'out', learning_rate=0.03"),
}


@pytest.mark.parametrize("style", RATES)
def test_the_learning_rate_where_it_is_given(tmp_path, style):
    text, where, old, new = RATES[style]
    check(tmp_path, HEAD + text, HEAD + text.replace(old, new), "learning-rate", where=where, lr=0.03)


def test_a_rate_from_elsewhere_is_shown(tmp_path):
    text = HEAD + "opt = torch.optim.SGD(net.parameters(), **load())\n"
    with pytest.raises(TreatmentRefused, match="'load\\(\\)'; set it there"):
        cured(tmp_path, text, "learning-rate", where="torch.optim.SGD(net.parameters(), **load())", lr=0.03)
    with pytest.raises(TreatmentRefused, match="set it to 0.03 there"):
        cured(tmp_path, text.replace("**load()", "lr=load()"), "learning-rate", where="torch.optim.SGD(net.parameters(), lr=load())", lr=0.03)


def test_epsilon_out_of_a_dictionary(tmp_path):
    text = HEAD + 'kw = dict(lr=1e-3, eps=1.0)\nopt = torch.optim.Adam(net.parameters(), **kw)\n'
    check(tmp_path, text, text.replace("1.0", "1e-8"), "adam-epsilon", where="torch.optim.Adam(net.parameters(), **kw)")


def test_epsilon_out_of_a_configuration(tmp_path):
    made = 'torch.optim.Adam(net.parameters(), **c["kwargs"])'
    text = HEAD + f'CONFIG = {{"optimizer": {{"name": "Adam", "kwargs": {{"eps": 1.0}}}}}}\ndef build(net, c):\n    return {made}\nbuild(net, CONFIG["optimizer"])\n'
    check(tmp_path, text, text.replace("1.0", "1e-8"), "adam-epsilon", where=made)


def test_bias_dropout_and_registration_in_other_styles(tmp_path):
    text = HEAD + "layers = [nn.Conv2d(3, w, 3) for w in widths]\n"
    check(tmp_path, text, text.replace("w, 3)", "w, 3, bias=False)"), "drop-bias", layers=[("0", "conv2d", "nn.Conv2d(3, w, 3)")])
    text = HEAD + "class Net(nn.Module):\n    def __init__(self):\n        self.parts = [block(i) for i in range(3)]\n"
    check(tmp_path, text, text.replace("[block(i) for i in range(3)]", "nn.ModuleList([block(i) for i in range(3)])"), "register-modules", where="block(i)")
    grown = HEAD + "def block(i):\n    return nn.Sequential(nn.Linear(i, i))\nclass Net(nn.Module):\n    def __init__(self):\n        self.parts = []\n" \
        "        for i in range(3):\n            self.parts.append(block(i))\n"
    check(tmp_path, grown, grown.replace("self.parts = []", "self.parts = nn.ModuleList()"), "register-modules", where="nn.Linear(i, i)", modules=("parts.0.0",))
    made = text.replace("block(i) for", "mlp(i) for").replace("class Net", "def mlp(i):\n    return nn.Sequential(nn.Linear(i, i))\nclass Net")
    check(tmp_path, made, made.replace("[mlp(i) for i in range(3)]", "nn.ModuleList([mlp(i) for i in range(3)])"), "register-modules", where="nn.Linear(i, i)",
          modules=("parts.0.0",))


def test_the_forgotten_activation_in_nested_and_separate_calls(tmp_path):
    head = "import torch.nn.functional as F\nclass Net:\n    def forward(self, x):\n"
    apart = head + "        x = self.a(x)\n        x = self.b(x)\n        return self.c(x)\n"
    check(tmp_path, apart, apart.replace("self.b(x)", "self.b(F.relu(x))").replace("self.c(x)", "self.c(F.relu(x))"), "add-activation", where="self.b(x)",
          modules=("b", "c"))
    nested = head + "        return self.c(self.b(self.a(x)))\n"
    check(tmp_path, nested, nested.replace("self.c(self.b(self.a(x)))", "self.c(F.relu(self.b(F.relu(self.a(x)))))"), "add-activation",
          where="self.c(self.b(self.a(x)))", modules=("b", "c"))


def test_a_rounding_passes_its_gradient(tmp_path):
    text = "import torch\ny = torch.round(z)\n"
    check(tmp_path, text, text.replace("torch.round(z)", "(z + (torch.round(z) - z).detach())"), "straight-through", where="torch.round(z)", op="round")
    with pytest.raises(TreatmentRefused, match="give 'f\\(z\\)' a name first"):
        cured(tmp_path, text.replace("(z)", "(f(z))"), "straight-through", where="torch.round(f(z))", op="round")


def test_a_rounded_expression_gets_a_name_first(tmp_path):
    text = "import torch\n\n\ndef quantise(z):\n    return torch.round(z * 7) / 7\n"
    after = text.replace("    return torch.round(z * 7) / 7", "    soft = z * 7\n    return (soft + (torch.round(soft) - soft).detach()) / 7")
    check(tmp_path, text, after, "straight-through", where="torch.round(z * 7)", op="round")
    method = text.replace("torch.round(z * 7)", "(z * 7).round(decimals=1)")
    check(tmp_path, method, after.replace("torch.round(soft)", "soft.round(decimals=1)"), "straight-through", where="(z * 7).round(decimals=1)", op="round")
    taken = text.replace("(z):", "(z, soft=7):")
    assert "continuous = z * 7\n" in cured(tmp_path, taken, "straight-through", where="torch.round(z * 7)", op="round")
    for deciding in ("return [torch.round(z * 7) for z in z]", "return torch.round(z * 7) if z else None", "return z is not None and torch.round(z * 7)"):
        with pytest.raises(TreatmentRefused, match="a name first"):
            cured(tmp_path, text.replace("return torch.round(z * 7) / 7", deciding), "straight-through", where="torch.round(z * 7)", op="round")


def test_group_norm_frozen_statistics_and_half_precision(tmp_path):
    text = HEAD + "net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))\n"
    check(tmp_path, text, text.replace("nn.BatchNorm2d(8)", "nn.GroupNorm(1, 8)"), "replace-norm", layers=[("1", "batch_norm", "nn.BatchNorm2d(8)")])
    text = HEAD + "for epoch in range(3):\n    net.train()\n    step()\n"
    check(tmp_path, text, text.replace("    step", "    net.trunk.eval()\n    step"), "eval-batchnorm", modules=("trunk.1",))
    text = HEAD + 'with torch.autocast("cpu", dtype=torch.float16):\n    y = net(x)\n'
    check(tmp_path, text, text.replace("float16", "bfloat16"), "autocast-bf16")


def test_freezing_by_the_method(tmp_path):
    text = HEAD + "net.trunk.requires_grad = False\n"
    check(tmp_path, text, text.replace(".requires_grad = False", ".requires_grad_(False)"), "freeze", modules=("trunk",))


SICK = {
    "sequential": HEAD + "model = nn.Sequential(*[x for _ in range(12) for x in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 1))\n",
    "factory": "from torch.nn import *\ndef build_model():\n    layers = []\n    for _ in range(12):\n        layers += [Linear(32, 32), SELU()]\n"
               "    return Sequential(*layers, Linear(32, 1))\n",
    "class with functional calls": HEAD + "import torch.nn.functional as F\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(12))\n        self.head = nn.Linear(32, 1)\n\n    def forward(self, x):\n"
        "        for layer in self.layers:\n            x = F.relu(layer(x))\n        return self.head(x)\n",
    "own layers": HEAD + "class Own(nn.Module):\n    def __init__(self, i, o):\n        super().__init__()\n        self.weight = nn.Parameter(torch.randn(o, i) * 0.05)\n"
        "\n    def forward(self, x):\n        return nn.functional.linear(x, self.weight)\n\n\n"
        "model = nn.Sequential(*[x for _ in range(9) for x in (Own(32, 32), nn.ReLU())], nn.Linear(32, 1))\n",
    "own initialisation": HEAD + "model = nn.Sequential(*[x for _ in range(9) for x in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 1))\n"
        "for p in model.parameters():\n    nn.init.normal_(p)\n",
}


def audited(path, tmp_path, *, own_batch=False):
    output = tmp_path / "report.json"
    with pytest.raises(SystemExit):
        main(["audit", str(path), *([] if own_batch else ["--input", "float32[64,32]"]), "--format", "json", "--output", str(output)])
    data = json.loads(output.read_text())
    return from_json(data["reports"][0] if "reports" in data else data)


@pytest.mark.parametrize("style", SICK)
def test_the_edited_file_is_audited_without_the_finding(tmp_path, style):
    path = tmp_path / "net.py"
    path.write_text(SICK[style])
    report = audited(path, tmp_path)
    finding, fix = next((f, x) for f, x in planned(report, str(path), unsafe=True) if x.edits)
    assert finding.severity != "info"
    path.write_text(applied(SICK[style], fix.edits))

    again = audited(path, tmp_path)

    assert finding.rule not in {f.rule for f in again.findings if f.severity != "info"} and again.count("error") == 0
    assert not [x for f, x in planned(again, str(path), unsafe=True) if f.rule == finding.rule]


def test_every_treatment_of_this_package_has_a_golden_test():
    files = Path(__file__).parent.glob("test_*.py")
    named = {n.value for f in files for n in ast.walk(ast.parse(f.read_text())) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    assert set(PLANNERS) <= named


def test_a_planner_that_fails_refuses_and_leaves_the_others_their_turn(tmp_path, monkeypatch):
    """A bug in one cure must not take the other ones away."""
    def broken(context, finding, prescription):
        raise IndexError("pop from empty list")
    monkeypatch.setattr("gradcheck_doctor.treatments.plan.planners", lambda: {**PLANNERS, "drop-bias": broken})
    text = "from torch import nn\nnet = nn.Sequential(nn.Linear(3, 8), nn.Sigmoid(), nn.Linear(8, 1))\n"
    with pytest.raises(TreatmentRefused, match="'drop-bias' failed, please report it: IndexError: pop from empty list"):
        cured(tmp_path, text, "drop-bias", layers=[("0", "linear", "nn.Linear(3, 8)")])
    assert "BatchNorm1d(8)" in cured(tmp_path, text, "insert-norm", layers=[("0", "linear", "nn.Linear(3, 8)")], norm="batch")
