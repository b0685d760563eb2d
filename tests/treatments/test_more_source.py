"""Golden source edits at one layer and around the optimizer."""
import pytest

from gradcheck_doctor.errors import TreatmentRefused
from tests.treatments.test_source import edit
from tests.treatments.test_styles import cured

HEAD = "import torch\nfrom torch import nn\n"


@pytest.mark.parametrize(("before", "after"), [
    ("conv = nn.Conv2d(3, 8, 3)", "conv = nn.Conv2d(3, 8, 3, bias=False)"), ("conv = nn.Conv2d(3, 8, 3, bias=True)", "conv = nn.Conv2d(3, 8, 3, bias=False)"),
    ("conv = nn.Conv2d(in_channels=3, out_channels=8, kernel_size=3)", "conv = nn.Conv2d(in_channels=3, out_channels=8, kernel_size=3, bias=False)")])
def test_drop_bias(tmp_path, before, after):
    assert edit(tmp_path, HEAD + before + "\n", "drop-bias", layers=[("conv", "conv2d", before[7:])]) == HEAD + after + "\n"


def test_drop_bias_refuses_a_bias_from_elsewhere(tmp_path):
    with pytest.raises(TreatmentRefused, match="use_bias"):
        edit(tmp_path, HEAD + "conv = nn.Conv2d(3, 8, 3, bias=use_bias)\n", "drop-bias", layers=[("conv", "conv2d", "nn.Conv2d(3, 8, 3, bias=use_bias)")])


def test_alpha_dropout_and_swap(tmp_path):
    text = HEAD + "net = nn.Sequential(nn.Linear(4, 4), nn.SELU(), nn.Dropout(0.1), nn.Linear(4, 1))\n"
    assert edit(tmp_path, text, "alpha-dropout", layers=[("1", "selu", "nn.SELU()")]) == text.replace("nn.Dropout", "nn.AlphaDropout")
    text = HEAD + "net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(p=0.1), nn.BatchNorm1d(4))\n"
    assert edit(tmp_path, text, "swap-dropout-norm", layers=[("2", "batch_norm", "nn.BatchNorm1d(4)")]) == text.replace(
        "nn.Dropout(p=0.1), nn.BatchNorm1d(4)", "nn.BatchNorm1d(4), nn.Dropout(p=0.1)")
    apart = text.replace("nn.Dropout(p=0.1), ", "nn.Dropout(p=0.1), nn.ReLU(), ")
    with pytest.raises(TreatmentRefused, match="directly in front"):
        edit(tmp_path, apart, "swap-dropout-norm", layers=[("2", "batch_norm", "nn.BatchNorm1d(4)")])


def test_clamp_every_log_of_the_statement(tmp_path):
    text = HEAD + "def bce(p, y):\n    return -(y * torch.log(p) + (1 - y) * (1 - p).log()).mean()\n"
    after = edit(tmp_path, text, "clamp-input", where="torch.log(p)", minimum=1e-7)
    assert after == text.replace("torch.log(p)", "torch.log(p.clamp(min=1e-7))").replace("(1 - p).log()", "(1 - p).clamp(min=1e-7).log()")
    with pytest.raises(TreatmentRefused, match="already"):
        edit(tmp_path, after, "clamp-input", where="torch.log(p.clamp(min=1e-7))", minimum=1e-7)
    assert "torch.sqrt((a + b).clamp(min=1e-7))" in edit(tmp_path, HEAD + "d = torch.sqrt(a + b)\n", "clamp-input", where="torch.sqrt(a + b)")


def test_the_optimizer_gets_what_it_misses(tmp_path):
    text = HEAD + "opt = torch.optim.SGD(net.body.parameters(), lr=0.1)\n"
    where = "torch.optim.SGD(net.body.parameters(), lr=0.1)"
    assert edit(tmp_path, text, "add-parameters", where=where, modules=("head",)) == text.replace("net.body.parameters()", "net.parameters()")
    with pytest.raises(TreatmentRefused, match="ModuleList"):
        edit(tmp_path, text.replace("net.body", "net"), "add-parameters", where=where.replace("net.body", "net"), modules=("head",))
    for name in ("encoder", "self.encoder"):
        two = f"{HEAD}{name}, net = Encoder(3), Net()\n" + text.removeprefix(HEAD).replace("net.body", "net")
        after = edit(tmp_path, two, "add-parameters", where=where.replace("net.body", "net"), modules=("Encoder.0", "Encoder.2"))
        assert after == two.replace("net.parameters()", f"[*net.parameters(), *{name}.parameters()]")
    with pytest.raises(TreatmentRefused, match="not built from"):
        edit(tmp_path, text.replace("net.body.parameters()", "params"), "add-parameters", where=where.replace("net.body.parameters()", "params"), modules=("head",))


def test_a_head_built_after_the_optimizer_gets_a_group(tmp_path):
    text = HEAD + "opt = torch.optim.SGD(net.parameters(), lr=0.1)\nnet.head = nn.Linear(8, 3)\nprint(net)\n"
    after = edit(tmp_path, text, "add-parameters", where="nn.Linear(8, 3)", modules=("head",))
    assert after == text.replace("nn.Linear(8, 3)\n", 'nn.Linear(8, 3)\nopt.add_param_group({"params": net.head.parameters()})\n')


def test_an_optimizer_that_chose_too_early_is_built_later(tmp_path):
    made = "opt = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)\n"
    late = "net.head = nn.Linear(8, 3)\nfor p in net.parameters():\n    p.requires_grad_(True)\n"
    text = HEAD + made + late + "fit(net, opt)\nnet.other = 1\n"
    after = edit(tmp_path, text, "add-parameters", where=made[6:-1], modules=("head",))
    assert after == HEAD + late + made + "fit(net, opt)\nnet.other = 1\n"
    used = HEAD + made + "plan(opt)\n" + late
    assert edit(tmp_path, used, "add-parameters", where=made[6:-1], modules=("head",)) == used.replace("[p for p in net.parameters() if p.requires_grad]",
                                                                                                   "net.parameters()")


GROUPS = """\
def groups(model, decay):
    large = []
    for name, p in model.named_parameters():
        if p.ndim == 2:
            large.append(p)
    return [{"params": large, "weight_decay": decay}]
"""
REST = ['held = {id(p) for group in opt.param_groups for p in group["params"]}',
        'opt.add_param_group({"params": [p for p in net.parameters() if p.requires_grad and id(p) not in held]})']


@pytest.mark.parametrize(("before", "made"), [
    (GROUPS + "net = Net()\n", "torch.optim.SGD(groups(net, 0.1), lr=0.1)"),
    ("net = Net()\nlarge = [p for n, p in net.named_parameters() if p.ndim == 2]\n", 'torch.optim.SGD([{"params": large, "weight_decay": 0.1}], lr=0.1)'),
    ("net = Net()\nlarge = []\nfor p in net.parameters():\n    if p.ndim == 2:\n        large.append(p)\n", "torch.optim.SGD(large, lr=0.1)"),
    ("net = Net()\n", 'torch.optim.SGD([{"params": net.body.parameters()}, {"params": net.neck.parameters()}], lr=0.1)')])
def test_what_chosen_groups_leave_out_gets_one_of_its_own(tmp_path, before, made):
    text = HEAD + before + f"opt = {made}\nprint(opt)\n"
    after = edit(tmp_path, text, "add-parameters", where=made, modules=("conv",))
    assert after == text.replace(f"opt = {made}\n", "\n".join([f"opt = {made}", *REST, ""]))


def test_groups_of_a_function_that_returns_the_optimizer_and_of_a_lightning_module(tmp_path):
    made = "torch.optim.SGD(groups(net, 0.1), lr=0.1)"
    text = HEAD + GROUPS + f"def optimizer_of(net):\n    return {made}\nopt = optimizer_of(Net())\n"
    assert edit(tmp_path, text, "add-parameters", where=made, modules=("conv",)) == text.replace(
        f"    return {made}\n", "".join(f"    {line}\n" for line in [f"optimizer = {made}", *(r.replace("opt.", "optimizer.") for r in REST), "return optimizer"]))
    made = "torch.optim.SGD(groups(self, 0.1), lr=0.1)"
    text = HEAD + GROUPS + f"class Lit(pl.LightningModule):\n    def configure_optimizers(self):\n        opt = {made}\n        return opt\n"
    assert edit(tmp_path, text, "add-parameters", where=made, modules=("conv",)) == text.replace(
        f"        opt = {made}\n", "".join(f"        {line.replace('net.', 'self.')}\n" for line in [f"opt = {made}", *REST]))


def test_groups_are_made_behind_a_layer_that_is_replaced(tmp_path):
    made = 'opt = torch.optim.SGD(\n        [{"params": net.body.parameters()}, {"params": net.head.parameters(), "lr": 0.3}])\n'
    late = "    net.head = nn.Linear(8, 3)\n"
    text = HEAD + "def tune(net):\n    " + made + late + "    fit(net, opt)\n"
    assert edit(tmp_path, text, "add-parameters", where="nn.Linear(8, 3)", modules=("head",)) == HEAD + "def tune(net):\n" + late + "    " + made + "    fit(net, opt)\n"


@pytest.mark.parametrize("made", ["torch.optim.SGD(params, lr=0.1)", "torch.optim.SGD([*a.parameters(), *b.parameters()], lr=0.1)"])
def test_whose_parameters_are_left_out_has_to_be_plain(tmp_path, made):
    with pytest.raises(TreatmentRefused, match="not built from"):
        edit(tmp_path, HEAD + f"opt = {made}\n", "add-parameters", where=made, modules=("head",))


@pytest.mark.parametrize(("before", "after"), [
    ('self.parts = {"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}', 'self.parts = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})'),
    ('self.parts = {f"{k}": nn.Linear(2, 2) for k in range(3)}', 'self.parts = nn.ModuleDict({f"{k}": nn.Linear(2, 2) for k in range(3)})'),
    ('names = ("a", "b"); self.parts = {n: nn.Linear(2, 2) for n in names}', 'names = ("a", "b"); self.parts = nn.ModuleDict({n: nn.Linear(2, 2) for n in names})'),
    ('d = {"a": 1}; self.parts = {n: nn.Linear(2, 2) for n, k in d.items()}', 'd = {"a": 1}; self.parts = nn.ModuleDict({n: nn.Linear(2, 2) for n, k in d.items()})'),
    ('self.parts = {}; self.parts["a"] = nn.Linear(2, 2)', 'self.parts = nn.ModuleDict(); self.parts["a"] = nn.Linear(2, 2)')])
def test_a_dictionary_of_layers_becomes_a_module(tmp_path, before, after):
    head = HEAD + "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        "
    assert edit(tmp_path, f"{head}{before}\n", "register-modules", where="nn.Linear(2, 2)") == f"{head}{after}\n"
    with pytest.raises(TreatmentRefused, match="strings"):
        edit(tmp_path, head + "self.parts = {1: nn.Linear(2, 2)}\n", "register-modules", where="nn.Linear(2, 2)")
    with pytest.raises(TreatmentRefused, match="strings"):
        edit(tmp_path, head + "self.parts = {n: nn.Linear(2, 2) for n in (1, 2)}\n", "register-modules", where="nn.Linear(2, 2)")


def test_freeze_backbone_and_weight_decay(tmp_path):
    text = HEAD + "def go(net):\n    opt = torch.optim.Adam(net.parameters(), lr=0.1, weight_decay=0.5)\n    return opt\n"
    where = "torch.optim.Adam(net.parameters(), lr=0.1, weight_decay=0.5)"
    after = edit(tmp_path, text, "freeze-backbone", where=where, modules=("Net_1.trunk.0", "Net_1.trunk.2"))
    assert after == text.replace("    opt", "    net.trunk.requires_grad_(False)\n    opt")
    assert edit(tmp_path, text, "weight-decay", where=where, weight_decay=0.05) == text.replace("weight_decay=0.5", "weight_decay=0.05")


def test_grad_scaler(tmp_path):
    text = HEAD + ("opt = torch.optim.SGD(net.parameters(), lr=0.1)\nfor x, y in data:\n    loss = f(net(x), y)\n    opt.zero_grad()\n    loss.backward()\n"
                   "    nn.utils.clip_grad_norm_(net.parameters(), 1.0)\n    opt.step()\n")
    assert edit(tmp_path, text, "grad-scaler") == HEAD + (
        'opt = torch.optim.SGD(net.parameters(), lr=0.1)\nscaler = torch.amp.GradScaler("cuda" if torch.cuda.is_available() else "cpu")\n'
        "for x, y in data:\n    loss = f(net(x), y)\n    opt.zero_grad()\n    scaler.scale(loss).backward()\n    scaler.unscale_(opt)\n"
        "    nn.utils.clip_grad_norm_(net.parameters(), 1.0)\n    scaler.step(opt)\n    scaler.update()\n")


def test_losses(tmp_path):
    text = HEAD + 'f = nn.MSELoss(reduction="sum")\nloss = f(out, y)\n'
    assert edit(tmp_path, text, "mean-reduction", where="f(out, y)") == text.replace('"sum"', '"mean"')
    assert edit(tmp_path, text, "match-shapes", where="f(out, y)") == text.replace("f(out, y)", "f(out, y.view_as(out))")
    unnamed = text.replace("out", "net(x)")
    assert edit(tmp_path, unnamed, "match-shapes", where="f(net(x), y)", target="unsqueeze") == unnamed.replace("y)", "y.unsqueeze(-1))")
    with pytest.raises(TreatmentRefused, match="side by side"):
        edit(tmp_path, text.replace("out, y", "*pair"), "match-shapes", where="f(*pair)")


@pytest.mark.parametrize(("made", "after"), [
    ("nn.LogSoftmax(dim=0)", "nn.LogSoftmax(dim=1)"), ("F.log_softmax(x, 0)", "F.log_softmax(x, 1)"), ("x.softmax(0)", "x.softmax(1)")])
def test_the_axis_of_a_softmax(tmp_path, made, after):
    assert edit(tmp_path, HEAD + f"y = {made}\n", "softmax-axis", where=made, dim=1, old=0) == HEAD + f"y = {after}\n"


@pytest.mark.parametrize(("made", "scored", "after"), [
    ("q @ k.mT", "q @ k.mT", "(q @ k.mT) / 64 ** 0.5"), ("torch.bmm(q, k)", "torch.bmm(q, k)", "torch.bmm(q, k) / 64 ** 0.5"),
    ("F.softmax(q @ k.mT, -1)", "q @ k.mT", "F.softmax((q @ k.mT) / 64 ** 0.5, -1)"), ("(q @ k.mT).softmax(-1)", "q @ k.mT", "(((q @ k.mT) / 64 ** 0.5)).softmax(-1)"),
    ("q @ k.mT + bias", "q @ k.mT", "((q @ k.mT) / 64 ** 0.5) + bias")])
def test_scores_are_divided(tmp_path, made, scored, after):
    assert edit(tmp_path, HEAD + f"y = {made}\n", "scale-scores", where=scored, width=64) == HEAD + f"y = {after}\n"


@pytest.mark.parametrize(("made", "after"), [
    ("nn.Softmax(dim=1)", "nn.LogSoftmax(dim=1)"), ("F.softmax(net(x), 1)", "F.log_softmax(net(x), 1)"), ("net(x).softmax(1)", "net(x).log_softmax(1)")])
def test_the_logarithm_of_a_softmax(tmp_path, made, after):
    assert edit(tmp_path, HEAD + f"y = {made}\n", "log-softmax", where=made) == HEAD + f"y = {after}\n"


@pytest.mark.parametrize(("text", "where"), [
    ("def fit(net, **adam):\n    return torch.optim.Adam(net.parameters(), **adam)\nfit(net, lr=1e-3, weight_decay=0.5)\n",
     "torch.optim.Adam(net.parameters(), **adam)"),
    ("class Trainer:\n    def __init__(self, net, **kw):\n        self.opt = torch.optim.Adam(net.parameters(), **kw)\nTrainer(net, weight_decay=0.5)\n",
     "torch.optim.Adam(net.parameters(), **kw)"),
    ("make = functools.partial(torch.optim.SGD, lr=0.1, weight_decay=0.5)\nopt = make(net.parameters())\n", "make(net.parameters())"),
    ("@dataclass\nclass Opt:\n    lr: float = 0.1\n    weight_decay: float = 0.5\nopt = torch.optim.SGD(net.parameters(), **vars(Opt()))\n",
     "torch.optim.SGD(net.parameters(), **vars(Opt()))"),
    ("@dataclass\nclass Opt:\n    weight_decay: float = 0.5\ncfg = Opt()\nopt = torch.optim.SGD(net.parameters(), **dataclasses.asdict(cfg))\n",
     "torch.optim.SGD(net.parameters(), **dataclasses.asdict(cfg))"),
    ("cfg = SimpleNamespace(weight_decay=0.5)\nopt = torch.optim.SGD(net.parameters(), **cfg.__dict__)\n",
     "torch.optim.SGD(net.parameters(), **cfg.__dict__)"),
    ("def fit(net, make):\n    return make(net.parameters())\nfit(net, partial(torch.optim.SGD, lr=0.1, weight_decay=0.5))\n", "make(net.parameters())")])
def test_settings_that_are_passed_on_are_changed_where_they_are_given(tmp_path, text, where):
    assert edit(tmp_path, HEAD + text, "weight-decay", where=where, weight_decay=0.05) == HEAD + text.replace("0.5", "0.05")


@pytest.mark.parametrize("made", ["norm = partial(nn.BatchNorm2d, momentum=0.001)\n", "norm = functools.partial(nn.BatchNorm2d, eps=1e-3, momentum=0.001)\n"])
def test_the_momentum_of_a_partial(tmp_path, made):
    text = HEAD + made + "net = nn.Sequential(nn.Conv2d(1, 8, 3), norm(8))\n"
    assert edit(tmp_path, text, "batchnorm-momentum", layers=[("1", "batch_norm", "norm(8)")], momentum=0.1) == text.replace("0.001", "0.1")


@pytest.mark.parametrize(("old", "new", "after"), [
    ("module.", "", '{name.removeprefix("module."): value for name, value in torch.load(p).items()}'),
    ("", "module.", '{f"module.{name}": value for name, value in torch.load(p).items()}'),
    ("encoder.", "body.0.", '{name.replace("encoder.", "body.0.", 1): value for name, value in torch.load(p).items()}')])
def test_weights_are_loaded_under_other_names(tmp_path, old, new, after):
    text = HEAD + "net.load_state_dict(torch.load(p), strict=False)\n"
    where = "net.load_state_dict(torch.load(p), strict=False)"
    assert edit(tmp_path, text, "rename-keys", where=where, old=old, new=new) == text.replace("torch.load(p)", after)


def test_an_axis_from_elsewhere_is_left(tmp_path):
    with pytest.raises(TreatmentRefused, match="has to be 1"):
        edit(tmp_path, HEAD + "y = nn.LogSoftmax(dim=axis)\n", "softmax-axis", where="nn.LogSoftmax(dim=axis)", dim=1, old=0)


@pytest.mark.parametrize(("made", "after"), [
    ("nn.LSTM(2, hidden)", "nn.LSTM(2, hidden, batch_first=True)"), ("nn.GRU(2, 8, batch_first=False)", "nn.GRU(2, 8, batch_first=True)"),
    ("nn.TransformerEncoderLayer(16, nhead=2,)", "nn.TransformerEncoderLayer(16, nhead=2, batch_first=True,)")])
def test_batch_first(tmp_path, made, after):
    assert edit(tmp_path, HEAD + f"layer = {made}\n", "batch-first", where=made) == HEAD + f"layer = {after}\n"


def test_batch_first_of_spread_arguments_is_left(tmp_path):
    with pytest.raises(TreatmentRefused, match="spread"):
        edit(tmp_path, HEAD + "layer = nn.LSTM(2, **options)\n", "batch-first", where="nn.LSTM(2, **options)")


def test_the_minus_in_front_of_a_loss(tmp_path):
    text = HEAD + "loss = -nn.functional.mse_loss(out, y)\nloss.backward()\n"
    assert edit(tmp_path, text, "minimise-loss", where="-nn.functional.mse_loss(out, y)") == text.replace("= -nn", "= nn")
    text = HEAD + "loss = f(out, y)\n(-loss).backward()\n"
    assert edit(tmp_path, text, "minimise-loss", where="-loss") == text.replace("(-loss)", "loss")
    with pytest.raises(TreatmentRefused, match="minus"):
        edit(tmp_path, text, "minimise-loss", where="f(out, y)")


def test_the_minus_that_is_missing(tmp_path):
    text = HEAD + "def nll(p, y):\n    return 2 * p.gather(1, y).mean()\n"
    assert edit(tmp_path, text, "negate-loss", where="p.gather(1, y).mean()") == text.replace("p.gather", "-p.gather")
    with pytest.raises(TreatmentRefused, match="more than one call"):
        edit(tmp_path, text, "negate-loss", where="2 * p.gather(1, y).mean()")


def test_scale_output(tmp_path):
    text = HEAD + "class Net(nn.Module):\n    def forward(self, x):\n        return self.c(x).squeeze(-1)\n"
    assert edit(tmp_path, text, "scale-output", mean=-1000.0, std=250.0) == text.replace("squeeze(-1)", "squeeze(-1) * 250 - 1000")
    assert edit(tmp_path, text, "scale-output", mean=1.0, std=250.0) == text.replace("squeeze(-1)", "squeeze(-1) * 250")
    with pytest.raises(TreatmentRefused, match="no optimizer"):
        edit(tmp_path, HEAD, "scale-output", mean=0.0, std=250.0)


def test_residual_branches_are_normalised_where_they_read(tmp_path):
    text = HEAD + "import torch.nn.functional as F\n" + """\
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.b(torch.relu(self.a(x)))  # residual
"""
    layers = [("blocks.0.a", "linear", "nn.Linear(4, 4)"), ("blocks.0.b", "linear", "nn.Linear(4, 4)")]
    after = edit(tmp_path, text, "normalise-branches", layers=layers, modules=("blocks.0", "blocks.1"))
    assert after == text.replace("self.a(x)", "self.a(F.layer_norm(x, x.shape[-1:]))")
    bare = text.replace("import torch.nn.functional as F\n", "")
    assert "nn.functional.layer_norm(x" in edit(tmp_path, bare, "normalise-branches", layers=layers, modules=("blocks.0",))
    with pytest.raises(TreatmentRefused, match="layer_norm"):
        edit(tmp_path, text, "normalise-branches", layers=layers, modules=("other",))


def test_the_head_behind_residual_blocks_reads_a_normalised_stream_too(tmp_path):
    text = HEAD + "import torch.nn.functional as F\n" + """\
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        return x + torch.relu(self.a(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.blocks(x))
"""
    layers = [("blocks.0.a", "linear", "nn.Linear(4, 4)"), ("blocks.1.a", "linear", "nn.Linear(4, 4)"), ("head", "linear", "nn.Linear(4, 2)")]
    after = edit(tmp_path, text, "normalise-branches", layers=layers, modules=("blocks.0", "blocks.1"))
    assert after == text.replace("self.a(x)", "self.a(F.layer_norm(x, x.shape[-1:]))").replace(
        "self.head(self.blocks(x))", "self.head(F.layer_norm(self.blocks(x), (self.head.in_features,)))")
    named = text.replace("return self.head(self.blocks(x))", "y = self.blocks(x)\n        return self.head(y)")
    assert "self.head(F.layer_norm(y, y.shape[-1:]))" in edit(tmp_path, named, "normalise-branches", layers=layers, modules=("blocks.0", "blocks.1"))
    two = [*layers, ("second", "linear", "nn.Linear(4, 2)")]
    assert "in_features" not in edit(tmp_path, text, "normalise-branches", layers=two, modules=("blocks.0", "blocks.1"))


def test_a_clip_limit_and_a_momentum_where_their_numbers_come_from(tmp_path):
    text = HEAD + "limit = 0.005\n\n\ndef step():\n    nn.utils.clip_grad_norm_(net.parameters(), limit)\n"
    where = "nn.utils.clip_grad_norm_(net.parameters(), limit)"
    assert edit(tmp_path, text, "clip-threshold", where=where, max_norm=0.52) == text.replace("limit = 0.005", "limit = 0.52")
    named = text.replace("limit)", "max_norm=0.005)")
    assert edit(tmp_path, named, "clip-threshold", where=where.replace("limit)", "max_norm=0.005)"), max_norm=2.0) == named.replace("max_norm=0.005", "max_norm=2")
    text = HEAD + "norms = [nn.BatchNorm1d(4, momentum=0.001) for _ in range(2)]\n"
    layers = [("0", "batch_norm", "nn.BatchNorm1d(4, momentum=0.001)"), ("1", "batch_norm", "nn.BatchNorm1d(4, momentum=0.001)")]
    assert edit(tmp_path, text, "batchnorm-momentum", layers=layers, momentum=0.1) == text.replace("0.001", "0.1")
    with pytest.raises(TreatmentRefused, match="momentum is not given"):
        edit(tmp_path, text.replace(", momentum=0.001", ""), "batchnorm-momentum", layers=[("0", "batch_norm", "nn.BatchNorm1d(4)")], momentum=0.1)


@pytest.mark.parametrize("table", ["cfg = dict(lr=3.0, width=8)", 'cfg = {"lr": 3.0, "width": 8}'])
def test_a_number_from_an_entry_of_a_dictionary(tmp_path, table):
    text = HEAD + table + '\nopt = torch.optim.SGD(net.parameters(), lr=cfg["lr"])\n'
    where = 'torch.optim.SGD(net.parameters(), lr=cfg["lr"])'
    assert edit(tmp_path, text, "learning-rate", where=where, lr=0.03) == text.replace("3.0", "0.03")
    for uncertain in ('cfg["lr"] = 2\n', "cfg = other()\n", "def train(cfg):\n    pass\n"):
        with pytest.raises(TreatmentRefused, match="gets its value"):
            edit(tmp_path, text + uncertain, "learning-rate", where=where, lr=0.03)


@pytest.mark.parametrize(("divisor", "after"), [("x.std(0)", "(x.std(0) + 1e-8)"), ("sd", "(sd + 1e-8)")])
def test_the_divisor_is_kept_away_from_0(tmp_path, divisor, after):
    text = HEAD + f"y = (x - m) / {divisor}\n"
    assert edit(tmp_path, text, "offset-divisor", where=divisor) == text.replace(divisor, after)
    added = HEAD + f"y = (x - m) / ({divisor} + eps)\n"
    assert edit(tmp_path, added, "offset-divisor", where=f"{divisor} + eps") == added.replace("eps", "eps + 1e-8")


SWEEP = HEAD + """\
HP = {"lr": 0.5, "weight_decay": 1.0}

def train(hp):
    return torch.optim.SGD(net.parameters(), lr=hp["lr"], weight_decay=hp["weight_decay"])

train(HP)
"""
FIELDS = HEAD + """\
@dataclass
class Optim:
    lr: float = 2e-3

@dataclass
class Config:
    optim: Optim = field(default_factory=lambda: Optim(lr=0.5))

opt = torch.optim.Adam(net.parameters(), lr=cfg.optim.lr)
"""
TEXT = HEAD + """\
CONFIG = json.loads(\"\"\"
{"model": {"max_lr": 0.5, "width": 96}, "optimizer": {"name": "Adam", "lr": 0.5}, "epochs": 10}
\"\"\")

def build(cfg, params):
    return torch.optim.Adam(params, lr=cfg["lr"])
"""


def test_a_number_that_came_by_an_argument_a_field_or_a_text(tmp_path):
    """Where several literals could be meant, the one whose value was seen is."""
    where = 'torch.optim.SGD(net.parameters(), lr=hp["lr"], weight_decay=hp["weight_decay"])'
    assert edit(tmp_path, SWEEP, "weight-decay", where=where, weight_decay=0.01, old=1.0) == SWEEP.replace("1.0", "0.01")
    where = "torch.optim.Adam(net.parameters(), lr=cfg.optim.lr)"
    assert edit(tmp_path, FIELDS, "learning-rate", where=where, lr=0.05, old=0.5) == FIELDS.replace("0.5", "0.05")
    with pytest.raises(TreatmentRefused, match="gets its value"):
        edit(tmp_path, FIELDS, "learning-rate", where=where, lr=0.07, old=0.7)
    where = 'torch.optim.Adam(params, lr=cfg["lr"])'
    assert edit(tmp_path, TEXT, "learning-rate", where=where, lr=0.05, old=0.5) == TEXT.replace('"lr": 0.5', '"lr": 0.05')
    twice = TEXT.replace('"width": 96', '"lr": 0.5')
    with pytest.raises(TreatmentRefused, match="gets its value"):
        edit(tmp_path, twice, "learning-rate", where=where, lr=0.05, old=0.5)


def test_a_rate_is_never_written_on_the_wrong_side_of_the_one_that_stands_there(tmp_path):
    """A schedule left 5e-6 of 2e-3: to raise that to 5e-4 would lower it."""
    text = HEAD + "opt = torch.optim.Adam(net.parameters(), lr=2e-3)\n"
    where = "torch.optim.Adam(net.parameters(), lr=2e-3)"
    with pytest.raises(TreatmentRefused, match="the other way"):
        edit(tmp_path, text, "learning-rate", where=where, lr=5e-4, old=5e-6)
    assert edit(tmp_path, text, "learning-rate", where=where, lr=2e-2, old=2e-3) == text.replace("2e-3", "0.02")


def test_momentum_and_a_clip_that_is_spread_into_its_call(tmp_path):
    text = HEAD + "opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.999)\n"
    where = "torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.999)"
    assert edit(tmp_path, text, "momentum", where=where, momentum=0.9, old=0.999) == text.replace("0.999", "0.9")
    text = HEAD + 'CFG = {"optim": {"lr": 0.1}, "clip": {"max_norm": 1e-4}}\ntorch.nn.utils.clip_grad_norm_(net.parameters(), **CFG["clip"])\n'
    where = 'torch.nn.utils.clip_grad_norm_(net.parameters(), **CFG["clip"])'
    assert edit(tmp_path, text, "clip-threshold", where=where, max_norm=0.85, old=1e-4) == text.replace("1e-4", "0.85")


LOOPS = HEAD + """\
for epoch in range(3):
    for x in data:
        opt.step()
        sched.step()
        count += 1
    print(epoch)
"""


def test_a_schedule_is_stepped_behind_the_loop_over_batches(tmp_path):
    after = edit(tmp_path, LOOPS, "step-schedule-per-epoch", where="sched.step()")
    assert after == LOOPS.replace("        sched.step()\n", "").replace("    print", "    sched.step()\n    print")
    last = LOOPS.replace("        count += 1\n    print(epoch)\n", "")
    assert edit(tmp_path, last, "step-schedule-per-epoch", where="sched.step()") == last.replace("        sched", "    sched")
    for other in (LOOPS.replace("sched.step()", "sched.step() if epoch else None"), LOOPS.replace("        sched.step()", "        if x: sched.step()"),
                  LOOPS.replace("for epoch in range(3):", "if data:"), LOOPS.replace("    print", "    else:\n        pass\n    print")):
        with pytest.raises(TreatmentRefused):
            edit(tmp_path, other, "step-schedule-per-epoch", where="sched.step()")


@pytest.mark.parametrize(("before", "axes", "after"), [
    ("y = x.reshape(T, -1, C)\n", (1, 0, 2), "y = x.transpose(0, 1)\n"), ("y = torch.reshape(a + b, (2, 3, 4))\n", (2, 0, 1), "y = (a + b).permute(2, 0, 1)\n")])
def test_axes_are_moved_and_not_cut_anew(tmp_path, before, axes, after):
    where = before.partition("= ")[2].strip()
    assert edit(tmp_path, HEAD + before, "permute-axes", where=where, axes=axes) == HEAD + after


def test_the_batch_comes_first_in_the_layer_that_is_repeated(tmp_path):
    text = HEAD + "layer = nn.TransformerEncoderLayer(32, nhead=4)\nnet = nn.TransformerEncoder(layer, 2)\n"
    after = text.replace("nhead=4)", "nhead=4, batch_first=True)")
    assert edit(tmp_path, text, "batch-first", where="nn.TransformerEncoder(layer, 2)") == after
    direct = HEAD + "net = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, nhead=4), 2)\n"
    assert edit(tmp_path, direct, "batch-first", where="nn.TransformerEncoder(nn.TransformerEncoderLayer(32, nhead=4), 2)") == direct.replace(
        "nhead=4)", "nhead=4, batch_first=True)")
    with pytest.raises(TreatmentRefused, match="repeated"):
        edit(tmp_path, HEAD + "net = nn.TransformerEncoder(made(), 2)\n".replace("made()", "*parts"), "batch-first", where="nn.TransformerEncoder(*parts, 2)")


def test_a_trainer_gets_another_limit_of_its_clip(tmp_path):
    text = HEAD + "trainer = Trainer(max_epochs=3, gradient_clip_val=1e-4)\ntrainer.fit(net, loader)\n"
    for where in ("trainer.fit(net, loader)", "Trainer(max_epochs=3, gradient_clip_val=1e-4)"):
        assert edit(tmp_path, text, "clip-threshold", where=where, max_norm=0.8, old=1e-4) == text.replace("1e-4", "0.8")


def test_lightning_steps_a_schedule_once_an_epoch(tmp_path):
    made = "ExponentialLR(opt, 0.8)"
    text = HEAD + f'def configure_optimizers(self):\n    s = {made}\n    return {{"optimizer": opt, "lr_scheduler": {{"scheduler": s, "interval": "step"}}}}\n'
    assert edit(tmp_path, text, "step-schedule-per-epoch", where=made) == text.replace('"step"', '"epoch"')


MANUAL = """\
def training_step(self, batch):
    a, b = self.optimizers()
    self.manual_backward(one(batch))
    a.step()
    self.manual_backward(two(batch))
    b.step()
"""


def test_each_optimizer_clears_its_gradients_in_front_of_its_backward(tmp_path):
    one = HEAD + MANUAL.replace("    self.manual_backward(one", "    a.zero_grad()\n    self.manual_backward(one")
    assert edit(tmp_path, HEAD + MANUAL, "zero-grad", where="a.step()") == one
    both = one.replace("    self.manual_backward(two", "    b.zero_grad()\n    self.manual_backward(two")
    assert edit(tmp_path, HEAD + MANUAL, "zero-grad", where="a.step()", several=True) == both
    parts = HEAD + "x.backward()\ny.backward()\nopt.step()\n"
    assert edit(tmp_path, parts, "zero-grad", where="opt.step()") == parts.replace("x.back", "opt.zero_grad()\nx.back")


def test_optimizers_of_two_models_get_all_of_them(tmp_path):
    text = HEAD + ("G, D = Maker(), Judge()\nopt_g = torch.optim.Adam(G.point.parameters(), lr=1e-3)\n"
                   "opt_d = torch.optim.Adam(D.score.parameters(), lr=1e-3)\n")
    after = text.replace("G.point.", "G.").replace("D.score.", "D.")
    where = "torch.optim.Adam(D.score.parameters(), lr=1e-3)"
    assert edit(tmp_path, text, "add-parameters", where=where, modules=("Maker.body.0", "Judge.body.0")) == after


def test_a_late_head_goes_to_the_optimizer_of_its_own_model(tmp_path):
    text = HEAD + ("first = Net()\nfit(first, torch.optim.Adam(first.parameters()))\nnet = Net()\nopt = torch.optim.Adam(net.parameters())\n"
                   "net.fc = nn.Linear(4, 5)\n")
    assert edit(tmp_path, text, "add-parameters", where="nn.Linear(4, 5)", modules=("Net_1.fc",)) == (
        text + 'opt.add_param_group({"params": net.fc.parameters()})\n')


@pytest.mark.parametrize("made", ["torch.full((a, b), 0.1)", "torch.ones(a, b) * 0.1", "torch.rand(a, b)"])
def test_equal_elements_of_a_layer_of_ones_own_are_drawn(tmp_path, made):
    text = HEAD + (f"class Dense(nn.Module):\n    def __init__(self, a, b):\n        super().__init__()\n        self.kernel = nn.Parameter({made})\n\n"
                   "    def forward(self, x):\n        return x @ self.kernel\n")
    after = edit(tmp_path, text, "initialise", layers=[("d", "matmul", "x @ self.kernel")], scheme="he normal")
    assert after == text.replace(made, "torch.randn(a, b) * (2 / a)**0.5")


def test_weight_decay_of_parameter_groups(tmp_path):
    text = (HEAD + 'SET = {"decay": 0.3}\ngroups = [{"params": a, "weight_decay": SET["decay"]}, {"params": b, "weight_decay": 0.0}]\n'
            'opt = torch.optim.Adam(groups, lr=1e-3)\n')
    where = "torch.optim.Adam(groups, lr=1e-3)"
    assert edit(tmp_path, text, "weight-decay", where=where, weight_decay=0.01, old=0.3) == text.replace("0.3", "0.01")
    with pytest.raises(TreatmentRefused, match="nor in its parameter groups"):
        edit(tmp_path, text, "weight-decay", where=where, weight_decay=0.01, old=0.7)


def test_without_a_forward_the_output_layer_starts_at_the_targets(tmp_path):
    made = "nn.Linear(8, 1)"
    text = HEAD + f"net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), {made}, nn.Flatten(0))\nopt = torch.optim.Adam(net.parameters(), lr=1e-3)\n"
    start = "with torch.no_grad():\n    net[2].weight.mul_(250)\n    net[2].bias.fill_(-1000)\n"
    assert edit(tmp_path, text, "scale-output", layers=[("2", "linear", made)], mean=-1000.0, std=250.0) == text.replace("opt =", start + "opt =")


@pytest.mark.parametrize(("before", "after"), [
    ("net = net.to(torch.bfloat16)\nx = x.to(torch.bfloat16)\n", "net = net.to(torch.float32)\nx = x.to(torch.float32)\n"),
    ("net.bfloat16()\nx = x.half()\n", "net.float()\nx = x.float()\n"),
    ('p.add_argument("--dtype", default="bfloat16")\n', 'p.add_argument("--dtype", default="float32")\n'),
    ('trainer = Trainer(precision="bf16-true")\n', 'trainer = Trainer(precision="bf16-mixed")\n'),
    ('with torch.autocast("cpu", dtype=torch.bfloat16):\n    net.to(dtype=torch.half)\n',
     'with torch.autocast("cpu", dtype=torch.bfloat16):\n    net.to(dtype=torch.float32)\n')])
def test_weights_are_kept_in_float32(tmp_path, before, after):
    assert edit(tmp_path, HEAD + before, "float32-weights") == HEAD + after


def test_weights_whose_precision_comes_from_elsewhere_are_left_alone(tmp_path):
    with pytest.raises(TreatmentRefused, match="half precision"):
        edit(tmp_path, HEAD + "net.to(config.dtype)\n", "float32-weights")


@pytest.mark.parametrize(("given", "after"), [
    ("lambda e: 0.003 * 0.9 ** e", "lambda e: (0.003 * 0.9 ** e) / 0.003"), ("lr_lambda=decayed", "lr_lambda=lambda step: decayed(step) / 0.003"),
    ("self.rate", "lambda step: self.rate(step) / 0.003")])
def test_the_factor_of_a_schedule_is_made_relative(tmp_path, given, after):
    text = HEAD + "sched = LambdaLR(opt, {})\n"
    assert edit(tmp_path, text.format(given), "relative-schedule", where=f"LambdaLR(opt, {given})", lr=0.003) == text.format(after)


@pytest.mark.parametrize("call", ["LambdaLR(opt, [f, g])", "LambdaLR(opt, make())", "LambdaLR(opt)", "own_schedule(opt, f)"])
def test_the_factor_of_an_unknown_schedule_is_left_alone(tmp_path, call):
    with pytest.raises(TreatmentRefused):
        edit(tmp_path, HEAD + f"sched = {call}\n", "relative-schedule", where=call, lr=0.003)


@pytest.mark.parametrize("text", [
    'ap.add_argument("--warmup-steps", type=int, default=100000)\nsched = linear(opt, args.warmup_steps, 260)\n', "WARMUP = 100000\nsched = linear(opt, WARMUP)\n",
    "def linear(opt, num_warmup_steps, total):\n    return LambdaLR(opt, ramp)\nsched = linear(opt, 100000, 260)\n",
    "sched = get_schedule(opt, num_warmup_steps=100000, num_training_steps=260)\n", "sched = LinearLR(opt, 1e-3, total_iters=100000)\n"])
def test_a_warm_up_is_shortened_where_its_length_stands(tmp_path, text):
    where = next(e for e in ("linear(opt, args.warmup_steps, 260)", "linear(opt, WARMUP)", "linear(opt, 100000, 260)", "LambdaLR(opt, ramp)",
                             "get_schedule(opt, num_warmup_steps=100000, num_training_steps=260)", "LinearLR(opt, 1e-3, total_iters=100000)") if e in text)
    assert edit(tmp_path, HEAD + text, "shorten-warmup", where=where, steps=26, longer=260) == HEAD + text.replace("100000", "26")
    with pytest.raises(TreatmentRefused, match="length of the warm-up"):
        edit(tmp_path, HEAD + text.replace("100000", "50"), "shorten-warmup", where=where.replace("100000", "50"), steps=26, longer=260)


@pytest.mark.parametrize(("before", "where", "p", "after"), [
    ("drop = nn.Dropout(0.95)\nother = nn.Dropout(p=0.95)\n", "nn.Dropout(0.95)", 0.05, "drop = nn.Dropout(0.05)\nother = nn.Dropout(p=0.05)\n"),
    ("KEEP = 0.95\ndrop = nn.Dropout(KEEP)\n", "nn.Dropout(KEEP)", 0.05, "KEEP = 0.95\ndrop = nn.Dropout(1 - KEEP)\n"),
    ("P = 0.95\ndrop = nn.Dropout(P)\n", "nn.Dropout(P)", 0.1, "P = 0.1\ndrop = nn.Dropout(P)\n"),
    ("y = nn.functional.dropout(f(x), 0.95, training)\nz = nn.Dropout(0.2)\n", "nn.functional.dropout(f(x), 0.95, training)", 0.05,
     "y = nn.functional.dropout(f(x), 0.05, training)\nz = nn.Dropout(0.2)\n"),
    ("y = nn.functional.dropout(x)\n", "nn.functional.dropout(x)", 0.1, "y = nn.functional.dropout(x, p=0.1)\n")])
def test_dropout_rate(tmp_path, before, where, p, after):
    assert edit(tmp_path, HEAD + before, "dropout-rate", where=where, modules=("drop",), p=p, old=0.95) == HEAD + after


FORWARD = HEAD + "class Net(nn.Module):\n    def forward(self, x):\n"
INIT = HEAD + "class Net(nn.Module):\n    def __init__(self):\n        self.act = nn.ReLU()\n    def forward(self, x):\n"
BUILD = HEAD + "def make(sizes):\n    layers = []\n    for a, b in sizes:\n        layers.append(nn.Linear(a, b))\n        layers.append(nn.ReLU())\n"


@pytest.mark.parametrize(("before", "where", "after"), [
    (FORWARD + "        for f in self.fs:\n            x = torch.relu(f(x))\n        return x\n", "torch.relu(f(x))",
     FORWARD + "        for f in self.fs[:-1]:\n            x = torch.relu(f(x))\n        x = self.fs[-1](x)\n        return x\n"),
    (FORWARD + "        for f in self.fs:\n            x = f(x, 1).relu()\n        return x\n", "f(x, 1).relu()",
     FORWARD + "        for f in self.fs[:-1]:\n            x = f(x, 1).relu()\n        x = self.fs[-1](x, 1)\n        return x\n"),
    (INIT + "        for f in self.fs:\n            x = self.act(f(x))\n        return x\n", "nn.ReLU()",
     INIT + "        for f in self.fs[:-1]:\n            x = self.act(f(x))\n        x = self.fs[-1](x)\n        return x\n"),
    (INIT + "        x = self.act(self.a(x))\n        return self.act(self.b(x))\n", "nn.ReLU()",
     INIT + "        x = self.act(self.a(x))\n        return self.b(x)\n"),
    (BUILD + "    return nn.Sequential(*layers)\n", "nn.ReLU()", BUILD + "    return nn.Sequential(*layers[:-1])\n")])
def test_only_the_last_activation_is_removed(tmp_path, before, where, after):
    rows = [("a", "relu", where), ("b", "relu", where)]
    assert edit(tmp_path, before, "remove-output-activation", layers=rows, where=where, op="relu") == after


@pytest.mark.parametrize(("text", "where"), [
    (FORWARD + "        for f, g in zip(self.fs, self.gs):\n            x = torch.relu(f(g(x)))\n        return x\n", "torch.relu(f(g(x)))"),
    (FORWARD + "        for f in self.fs:\n            x = torch.relu(f(x))\n            x = x + 1\n        return x\n", "torch.relu(f(x))"),
    (BUILD + "    layers.append(nn.Linear(2, 2))\n    return nn.Sequential(*layers)\n", "nn.ReLU()")])
def test_an_activation_of_hidden_layers_stays(tmp_path, text, where):
    with pytest.raises(TreatmentRefused, match="hidden layers"):
        edit(tmp_path, text, "remove-output-activation", layers=[("a", "relu", where), ("b", "relu", where)], where=where, op="relu")


def test_an_output_computed_for_each_batch_of_a_loop_is_no_hidden_one(tmp_path):
    text = HEAD + "for x, y in loader:\n    loss = f(torch.relu(net(x)), y)\n"
    after = edit(tmp_path, text, "remove-output-activation", layers=[("", "relu", "torch.relu(net(x))")] * 2, where="torch.relu(net(x))", op="relu")
    assert after == text.replace("torch.relu(net(x))", "net(x)")


@pytest.mark.parametrize(("loop", "where", "width"), [
    ("    for i in range(3):\n        layers.append(nn.Linear(n_in if i == 0 else w, w))\n", "nn.Linear(n_in if i == 0 else w, w)", "n_in"),
    ("    for i in range(3):\n        layers += [nn.Linear(w if i > 0 else n_in, w), nn.ReLU()]\n", "nn.Linear(w if i > 0 else n_in, w)", "n_in"),
    ("    for a, b in zip(sizes[:-1], sizes[1:]):\n        layers.append(nn.Linear(a, b))\n", "nn.Linear(a, b)", "sizes[0]"),
    ("    for i in range(2):\n        layers.append(nn.Linear(sizes[i], sizes[i + 1]))\n", "nn.Linear(sizes[i], sizes[i + 1])", "sizes[0]"),
    ("    for b in sizes:\n        layers.append(nn.Linear(n_in, b))\n        n_in = b\n", "nn.Linear(n_in, b)", "n_in")])
def test_only_the_first_of_the_layers_of_a_loop_gets_a_normalised_input(tmp_path, loop, where, width):
    text = HEAD + "def make(n_in, w, sizes):\n    layers = []\n" + loop + "    return nn.Sequential(*layers)\n"
    after = edit(tmp_path, text, "input-norm", layers=[("0", "linear", where)], op="linear")
    assert after == text.replace("    for ", f"    layers.append(nn.BatchNorm1d({width}))\n    for ")


def test_layers_of_a_loop_in_a_module_list(tmp_path):
    text = HEAD + "class Net(nn.Module):\n    def __init__(self, s):\n        self.fs = nn.ModuleList([nn.Linear(a, b) for a, b in zip(s, s[1:])])\n" \
        "    def forward(self, x):\n        for f in self.fs:\n            x = f(x)\n        return x\n"
    after = edit(tmp_path, text, "input-norm", layers=[("fs.0", "linear", "nn.Linear(a, b)")], op="linear")
    assert after == text.replace("        self.fs =", "        self.input_norm = nn.BatchNorm1d(s[0])\n        self.fs =").replace(
        "        for f in", "        x = self.input_norm(x)\n        for f in")
    for other in (text.replace("self, x", "self, x, y"), text.replace("zip(s, s[1:])", "pairs(s)")):
        with pytest.raises(TreatmentRefused, match="first"):
            edit(tmp_path, other, "input-norm", layers=[("fs.0", "linear", "nn.Linear(a, b)")], op="linear")


def test_a_schedule_is_stepped_behind_the_optimizer_in_the_loop_over_batches(tmp_path):
    before = LOOPS.replace("        sched.step()\n", "").replace("    print", "    sched.step()\n    print")
    assert edit(tmp_path, before, "step-schedule-per-batch", where="sched.step()") == LOOPS
    for other in (LOOPS, before.replace("    for x in data:\n        opt.step()\n        count", "    opt.step()\n    for x in data:\n        count"),
                  before.replace("        opt.step()", "        opt.step()\n        other.step()")):
        with pytest.raises(TreatmentRefused):
            edit(tmp_path, other, "step-schedule-per-batch", where="sched.step()")


@pytest.mark.parametrize(("returned", "after"), [
    ("[opt], [s]", '[opt], [{"scheduler": s, "interval": "step"}]'),
    ('{"optimizer": opt, "lr_scheduler": s}', '{"optimizer": opt, "lr_scheduler": {"scheduler": s, "interval": "step"}}'),
    ('{"optimizer": opt, "lr_scheduler": {"scheduler": s}}', '{"optimizer": opt, "lr_scheduler": {"scheduler": s, "interval": "step"}}'),
    ('[opt], [{"scheduler": s, "interval": "epoch"}]', '[opt], [{"scheduler": s, "interval": "step"}]'), ("make(opt, s)", None), ("[opt], s", None)])
def test_lightning_steps_a_schedule_after_every_batch(tmp_path, returned, after):
    made = "OneCycleLR(opt, 0.1, total_steps=n)"
    text = HEAD + f"def configure_optimizers(self):\n    s = {made}\n    return {returned}\n"
    if after is None:
        with pytest.raises(TreatmentRefused, match="handed to Lightning"):
            edit(tmp_path, text, "step-schedule-per-batch", where=made)
    else:
        assert edit(tmp_path, text, "step-schedule-per-batch", where=made) == text.replace(returned, after)


@pytest.mark.parametrize(("before", "after"), [
    ('ReduceLROnPlateau(opt, "max", 0.5)', 'ReduceLROnPlateau(opt, "min", 0.5)'), ("ReduceLROnPlateau(opt, patience=3)", 'ReduceLROnPlateau(opt, patience=3, mode="min")'),
    ("ReduceLROnPlateau(opt, mode='max')", 'ReduceLROnPlateau(opt, mode="min")'), ("ReduceLROnPlateau(opt, **settings)", None),
    ("ReduceLROnPlateau(opt, mode=mode)", None)])
def test_a_plateau_scheduler_watches_the_other_way(tmp_path, before, after):
    text = HEAD + f"s = {before}\n"
    if after is None:
        with pytest.raises(TreatmentRefused):
            edit(tmp_path, text, "plateau-mode", where=before, mode="min")
    else:
        assert edit(tmp_path, text, "plateau-mode", where=before, mode="min") == text.replace(before, after)


def test_a_setting_of_a_table_that_is_handed_on_is_known_by_its_key_and_value(tmp_path):
    text = HEAD + 'CFG = {"lr": 1e-3, "eps": 0.1}\nmake = lambda p, c: torch.optim.Adam(p, lr=c["lr"], eps=c["eps"])\n'
    where = 'torch.optim.Adam(p, lr=c["lr"], eps=c["eps"])'
    assert edit(tmp_path, text, "adam-epsilon", where=where, eps=1e-8, old=0.1) == text.replace('"eps": 0.1', '"eps": 1e-8')
    with pytest.raises(TreatmentRefused):
        edit(tmp_path, text + 'OTHER = {"eps": 0.1}\n', "adam-epsilon", where=where, eps=1e-8, old=0.1)


@pytest.mark.parametrize(("before", "after"), [
    ("net.head.bias.copy_(counts)", "net.head.bias.zero_()"), ("net.head.bias.data.fill_(50.0)", "net.head.bias.data.zero_()"),
    ("nn.init.constant_(net.head.bias, 50.0)", "nn.init.zeros_(net.head.bias)"),
    ("net.head.bias.data = counts", "net.head.bias.data = torch.zeros_like(net.head.bias.data)"),
    ("fill(net.head.bias, counts)", None)])
def test_the_bias_of_the_output_starts_at_zero(tmp_path, before, after):
    text = HEAD + before + "\n"
    if after is None:
        with pytest.raises(TreatmentRefused, match="logarithms"):
            edit(tmp_path, text, "initialise", where=before, scheme="zero output bias")
    else:
        assert edit(tmp_path, text, "initialise", where=before, scheme="zero output bias") == text.replace(before, after)


@pytest.mark.parametrize(("before", "after"), [
    ("loss.backward()", "(loss / 16).backward()"), ("(a + b).backward()", "((a + b) / 16).backward()"), ("self.manual_backward(loss)", "self.manual_backward(loss / 16)"),
    ("step(loss)", None)])
def test_the_loss_of_each_batch_is_divided(tmp_path, before, after):
    text = HEAD + before + "\n"
    if after is None:
        with pytest.raises(TreatmentRefused, match="16"):
            edit(tmp_path, text, "divide-loss", where=before, by=16)
    else:
        assert edit(tmp_path, text, "divide-loss", where=before, by=16) == text.replace(before, after)


@pytest.mark.parametrize("asked", ["grads = torch.autograd.grad(loss, w)\nfor p, g in zip(w, grads):\n", "for p, g in zip(w, autograd.grad(loss, w)):\n"])
def test_the_rate_of_a_loop_by_autograd_grad_is_edited_where_it_stands(tmp_path, asked):
    text = HEAD + asked + "    p.data -= 20.0 * g\n"
    assert edit(tmp_path, text, "learning-rate", where="p.data -= 20.0 * g", lr=2.0, old=20.0) == text.replace("20.0", "2")


@pytest.mark.parametrize(("before", "after"), [
    ("criterion = nn.PoissonNLLLoss()", "criterion = nn.PoissonNLLLoss(log_input=False)"),
    ("loss = F.poisson_nll_loss(rate, y, full=True)", "loss = F.poisson_nll_loss(rate, y, full=True, log_input=False)"),
    ("loss = F.poisson_nll_loss(rate, y, log_input=True)", "loss = F.poisson_nll_loss(rate, y, log_input=False)")])
def test_an_option_of_the_loss(tmp_path, before, after):
    losses = ("PoissonNLLLoss", "poisson_nll_loss")
    assert edit(tmp_path, HEAD + before + "\n", "loss-option", where=before.partition(" = ")[2], name="log_input", value=False, losses=losses) == HEAD + after + "\n"
    with pytest.raises(TreatmentRefused, match="set log_input=False where it is made"):
        edit(tmp_path, HEAD + "loss = criterion(rate, y)\n", "loss-option", where="criterion(rate, y)", name="log_input", value=False, losses=losses)


def test_the_shape_of_targets_in_a_difference(tmp_path):
    text = HEAD + "mse = lambda pred, y: ((pred - y) ** 2).mean()\n"
    assert edit(tmp_path, text, "match-shapes", where="pred - y") == text.replace("pred - y", "pred - y.view_as(pred)")


TRAINER = ("class Trainer:\n    def __init__(self, model, lr=0.05):\n        self.model = model\n        self.opt = optim.SGD(model.parameters(), lr=lr)\n"
           "net = Net(5)\ntrainer = Trainer(net)\ntrainer.fit()\nnet.fc = nn.Linear(32, 10)\n")


def test_a_late_layer_of_a_model_whose_optimizer_an_object_holds(tmp_path):
    text = "from torch import nn, optim\n" + TRAINER
    after = edit(tmp_path, text, "add-parameters", where="nn.Linear(32, 10)", modules=("fc",))
    assert after == text + 'trainer.opt.add_param_group({"params": net.fc.parameters()})\n'
    with pytest.raises(TreatmentRefused, match=r"does not yield fc"):
        edit(tmp_path, text.replace("Trainer(net)", "Trainer(other)"), "add-parameters", where="nn.Linear(32, 10)", modules=("fc",))


def test_every_plain_list_of_layers_becomes_a_module(tmp_path):
    text = ("from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        self.body = []\n        for _ in range(3):\n"
            "            self.body.append(nn.Linear(4, 4))\n        self.outs = [nn.Linear(4, 2), nn.Linear(2, 1)]\n")
    layers = [("<unregistered Linear 0>", "linear", "nn.Linear(4, 4)"), ("<unregistered Linear 3>", "linear", "nn.Linear(4, 2)")]
    after = edit(tmp_path, text, "register-modules", where="nn.Linear(4, 4)", layers=layers, modules=tuple(x[0] for x in layers))
    assert after == text.replace("self.body = []", "self.body = nn.ModuleList()").replace("[nn.Linear(4, 2), nn.Linear(2, 1)]",
                                                                                         "nn.ModuleList([nn.Linear(4, 2), nn.Linear(2, 1)])")


EPOCH = "def train_epoch(net, opt, sched, batches):\n    for b in batches:\n        opt.step()\n        sched.step()\n    return 0\n"


def test_a_schedule_in_a_function_that_trains_one_epoch(tmp_path):
    text = EPOCH + "for epoch in range(3):\n    train_epoch(net, opt, sched, batches)\n"
    after = text.replace("        sched.step()\n", "    sched.step()\n")
    assert edit(tmp_path, text, "step-schedule-per-epoch", where="sched.step()") == after
    with pytest.raises(TreatmentRefused, match="call it once an epoch"):
        edit(tmp_path, EPOCH + "train_epoch(net, opt, sched, batches)\n", "step-schedule-per-epoch", where="sched.step()")


def test_a_trainer_of_the_users_own_is_not_lightnings(tmp_path):
    text = ("class Trainer:\n    def fit(self):\n        loss.backward()\n        self.opt.step()\ntrainer = Trainer()\n")
    after = edit(tmp_path, "from torch import nn\n" + text, "clip-by-norm", where="self.opt.step()", max_norm=1.0)
    assert "gradient_clip_val" not in after and "clip_grad_norm_(" in after.split("self.opt.step()")[0]


def test_functional_dropout_is_told_the_mode(tmp_path):
    text = ("import torch.nn.functional as F\nclass Net:\n    def forward(self, x):\n        x = F.dropout(f(x), p=0.5)\n        return F.dropout(x, 0.2)\n"
            "    def noise(self, x):\n        return F.dropout(x, training=True)\n")
    after = text.replace("p=0.5)", "p=0.5, training=self.training)").replace("(x, 0.2)", "(x, 0.2, training=self.training)")
    assert edit(tmp_path, text, "dropout-training", where="F.dropout(f(x), p=0.5)") == after
    with pytest.raises(TreatmentRefused, match="hand the mode over"):
        edit(tmp_path, "import torch.nn.functional as F\ny = F.dropout(x)\n", "dropout-training", where="F.dropout(x)")


def test_an_output_activation_that_a_shared_factory_is_given_goes_where_it_is_given(tmp_path):
    text = ("from torch import nn\ndef mlp(final=None):\n    parts = [nn.Linear(4, 4)]\n    if final is not None:\n        parts.append(final())\n"
            "    return nn.Sequential(*parts)\nencoder, decoder = mlp(final=nn.Tanh), mlp(final=nn.Sigmoid)\n")
    layers = [("decoder.1", "sigmoid", "final()")]
    after = edit(tmp_path, text, "remove-output-activation", where="final()", layers=layers, op="sigmoid")
    assert after == text.replace("final=nn.Sigmoid", "final=nn.Identity")


VAE = ("import torch\nimport torch.nn.functional as F\nclass Decoder:\n    def forward(self, z):\n        return torch.sigmoid(self.pixels(z))\n"
       "def elbo(recon, x):\n    return F.binary_cross_entropy_with_logits(recon, x)\ndef explained(model, x):\n    with torch.no_grad():\n"
       "        recon = model.decoder(x)\n    return 1 - ((recon - x) ** 2).sum()\n")


def test_a_reconstruction_that_is_compared_with_the_picture_stays_a_probability(tmp_path):
    more = {"where": "torch.sigmoid(self.pixels(z))", "op": "sigmoid", "layers": [("decoder", "sigmoid", "torch.sigmoid(self.pixels(z))")]}
    evidence = {"evidence": {"loss": "binary_cross_entropy_with_logits"}}
    after = cured(tmp_path, VAE, "remove-output-activation", **more, **evidence)
    assert after == VAE.replace("binary_cross_entropy_with_logits", "binary_cross_entropy")
    squashed = VAE.replace("recon = model.decoder(x)", "recon = torch.sigmoid(model.decoder(x))")
    assert "sigmoid(self.pixels" not in cured(tmp_path, squashed, "remove-output-activation", **more, **evidence)
