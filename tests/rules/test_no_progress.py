"""What is a matter of taste where a run learns is its fault where it does not: weights drawn too large in a normalised network, a rate with which it takes days."""
import pytest

from gradcheck_doctor.integrations.script import run_script
from gradcheck_doctor.rules.engine import diagnose

TAGGER = """
import torch
import torch.nn as nn
import torch.nn.functional as F
torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.f = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.ff = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x):
        q, k, v = self.qkv(self.a(x)).chunk(3, -1)
        x = x + self.proj(((q @ k.mT) / 32**0.5).softmax(-1) @ v)
        return x + self.ff(self.f(x))


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok, self.norm, self.head = nn.Embedding(8, 32), nn.LayerNorm(32), nn.Linear(32, {classes})
        self.blocks = nn.Sequential(Block(), Block())
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.data.normal_(mean=0.0, std={std})

    def forward(self, ids):
        return self.head(self.norm(self.blocks(self.tok(ids))))


model = Tagger()
opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(60):
    ids = torch.randint(0, 8, (16, 12))
    y = {task}
    opt.zero_grad()
    F.cross_entropy(model(ids).flatten(0, 1), y.flatten()).backward()
    opt.step()
"""
COUNTS = "((ids[:, :, None] == ids[:, None]).sum(-1) - 1).clamp(max=2)"


@pytest.mark.parametrize(("std", "task", "classes", "severity"), [
    ("1.0", COUNTS, 3, "error"), ("1.0", "ids % 2", 2, "info"), ("0.05", COUNTS, 3, None)])
def test_weights_drawn_too_large_everywhere(tmp_path, std, task, classes, severity):
    """A parity of single tokens is learned with such weights as well."""
    path = tmp_path / "train.py"
    path.write_text(TAGGER.format(std=std, task=task, classes=classes))
    found = diagnose(run_script(str(path), None, []).recording)
    assert [f.severity for f in found if f.rule == "init-scale"][:1] == ([severity] if severity else [])
    if severity == "error":
        assert found[0].rule == "init-scale" and path.read_text().splitlines()[found[0].location.line - 1].strip().startswith("module.weight.data.normal_")


CRAWLS = """
import torch
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
opt = torch.optim.Adam(net.parameters(), lr={lr})
for step in range({steps}):
    x = torch.rand(64, 2)
    opt.zero_grad()
    nn.functional.mse_loss(net(x)[:, 0], 4 * x[:, 0] - 2).backward()
    opt.step()
"""


@pytest.mark.parametrize(("lr", "steps", "severity"), [
    ("5e-6", 400, "warning"),
    ("1e-4", 400, None),
    ("1e-3", 400, None)])
def test_a_loss_that_falls_as_slowly_as_it_must(tmp_path, lr, steps, severity):
    path = tmp_path / "train.py"
    path.write_text(CRAWLS.format(lr=lr, steps=steps))
    found = [f for f in diagnose(run_script(str(path), None, []).recording) if f.rule == "learning-rate-too-low"]
    assert [f.severity for f in found] == ([severity] if severity else [])


LOOSE = """
import torch
import torch.nn.functional as F
from torch import nn
torch.manual_seed(0)
x, y = torch.randn(320, 12), torch.randint(0, 3, (320,))
y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 20), nn.Linear(20, 3)

    def forward(self, x):
        h = F.relu(self.a(x))
        {between}
        return self.b(h)


net = Net()
opt = torch.optim.Adam(net.parameters(), lr=1e-2)
for epoch in range(5):
    for i in torch.randperm(320).split(32):
        opt.zero_grad()
        {loss}
        loss.backward()
        opt.step()
"""
CROSS = "loss = F.cross_entropy(net(x[i]), y[i])"


@pytest.mark.parametrize(("between", "loss", "rule", "severity", "line", "cure"), [
    ("h = h.view(20, -1).t()", CROSS, "batch-mixing", "warning", "h = h.view", "permute-axes"),
    ("h = h * 1e-5", CROSS, "gradient-choke", "warning", "h = h * 1e-5", "drop-factor"),
    ("", "loss = F.mse_loss(net(x[i]).argmax(1).float().requires_grad_(), y[i].float())", "no-gradient", "error", "loss = F.mse_loss", None),
    ("", CROSS, None, None, None, None)])
def test_faults_of_a_run_that_goes_nowhere(tmp_path, between, loss, rule, severity, line, cure):
    path = tmp_path / "train.py"
    path.write_text(LOOSE.format(between=between, loss=loss))
    found = [f for f in diagnose(run_script(str(path), None, []).recording) if f.severity != "info"]
    assert [(f.rule, f.severity) for f in found[:1]] == ([(rule, severity)] if rule else [])
    if rule:
        assert path.read_text().splitlines()[found[0].location.line - 1].strip().startswith(line) and "unoptimized-parameter" not in {f.rule for f in found}
        assert [f.prescription.treatment for f in found[0].fixes] == ([cure] if cure else [])


SUMMED = """
import torch
from torch import nn
torch.manual_seed(0)
x = torch.randn(512, 16)
y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
for m in net[::2]:
    nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
opt, loss_fn = torch.optim.SGD(net.parameters(), lr={lr}, momentum=0.9), nn.CrossEntropyLoss()
for epoch in range(40):
    opt.zero_grad()
    for step, i in enumerate(torch.randperm(512).split(16), start=1):
        loss_fn(net(x[i]), y[i]).backward()
        if step % 16 == 0:
            opt.step()
            opt.zero_grad()
"""


@pytest.mark.parametrize(("lr", "sick"), [("1.0", True), ("0.005", False)])
def test_what_the_first_steps_raised_is_no_progress_when_it_is_gone(tmp_path, lr, sick):
    path = tmp_path / "train.py"
    path.write_text(SUMMED.format(lr=lr))
    found = [f.rule for f in diagnose(run_script(str(path), None, []).recording) if f.severity != "info"]
    assert found[:1] == (["learning-rate-too-high"] if sick else [])


# -- dropout that does not know the mode ---------------------------------------------------------------------------------------------------
DROPS = """
import torch
import torch.nn.functional as F
from torch import nn
torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 64), nn.Linear(64, 2)

    def drop(self, x):
        if not self.training:
            return x
        return F.dropout(x, 0.5)

    def forward(self, x):
        return self.b({dropout})


x = torch.randn(256, 8)
y = (x[:, 0] > 0).long()
net = Net()
opt = torch.optim.Adam(net.parameters(), lr=1e-2)
for i in torch.randperm(256).split(16):
    opt.zero_grad()
    F.cross_entropy(net(x[i]), y[i]).backward()
    opt.step()
{end}
"""


@pytest.mark.parametrize(("dropout", "end", "severity"), [
    ("F.dropout(F.relu(self.a(x)), p=0.5)", "net.eval()", "warning"),
    ("F.dropout(F.relu(self.a(x)), p=0.5)", "", "info"),                                          # it may be meant
    ("F.dropout(F.relu(self.a(x)), 0.1)", "net.eval()", "info"),
    ("F.dropout(F.relu(self.a(x)), p=0.5, training=self.training)", "net.eval()", None),
    ("F.dropout(F.relu(self.a(x)), 0.5, True)", "net.eval()", None),                              # said, so meant
    ("F.dropout(self.a(x), 0.5) if self.training else self.a(x)", "net.eval()", None),
    ("self.drop(self.a(x))", "net.eval()", None)])
def test_functional_dropout_that_goes_on_in_eval_mode(tmp_path, dropout, end, severity):
    path = tmp_path / "train.py"
    path.write_text(DROPS.format(dropout=dropout, end=end))
    found = [f for f in diagnose(run_script(str(path), None, []).recording) if f.rule == "train-eval-mismatch"]
    assert [f.severity for f in found] == ([severity] if severity else [])


# -- what starts equal, or at 0 ------------------------------------------------------------------------------------------------------------
FACTORS = """
import torch
from torch import nn
torch.manual_seed(0)
u, v = torch.randn(40, 3), torch.randn(30, 3)
i, j = torch.randint(0, 40, (2000,)), torch.randint(0, 30, (2000,))
y = (u[i] * v[j]).sum(-1) + 0.5 * torch.randn(40)[i]


class Factors(nn.Module):
    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Parameter({user}), nn.Parameter(torch.zeros(30, 4))
        self.bias = nn.Parameter(torch.zeros(40))

    def forward(self, i, j):
        return (self.user[i] * self.item[j]).sum(-1) + self.bias[i]


net = Factors()
opt = torch.optim.Adam(net.parameters(), lr=0.02)
for step in range(60):
    b = torch.randint(0, 2000, (100,))
    opt.zero_grad()
    nn.functional.mse_loss(net(i[b], j[b]), y[b]).backward()
    opt.step()
"""


@pytest.mark.parametrize(("user", "sick"), [("torch.zeros(40, 4)", True), ("0.1 * torch.randn(40, 4)", False)])
def test_two_factors_of_zeros_keep_each_other_there(tmp_path, user, sick):
    path = tmp_path / "train.py"
    path.write_text(FACTORS.format(user=user))
    found = [f for f in diagnose(run_script(str(path), None, []).recording) if f.severity != "info"]
    assert [(f.rule, f.severity) for f in found] == ([("no-gradient", "error")] if sick else [])
    assert not sick or "(user, item): all of them start at 0" in found[0].message


MIXTURE = """
import torch
from torch import nn
torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.logit, self.mean = nn.Sequential(nn.Linear(1, 24), nn.Tanh()), nn.Linear(24, 3), nn.Linear(24, 3)
        for head in (self.logit, self.mean):
            nn.init.{init}
            nn.init.zeros_(head.bias)

    def forward(self, x):
        h = self.body(x)
        return self.logit(h), self.mean(h)


net = Net()
opt = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(80):
    x = torch.rand(64, 1)
    side = torch.randint(0, 2, (64, 1)) * 2.0 - 1
    logit, mean = net(x)
    y = {target}
    opt.zero_grad()
    {loss}.backward()
    opt.step()
"""
MIXED = "(-torch.logsumexp(logit.log_softmax(-1) - 0.5 * (y - mean) ** 2 / 0.04, -1)).mean()"


@pytest.mark.parametrize(("init", "target", "loss", "sick"), [
    ("constant_(head.weight, 0.01)", "side", MIXED, True), ("xavier_uniform_(head.weight)", "side", MIXED, False),
    ("constant_(head.weight, 0.01)", "torch.cat([x, -x, 2 * x], 1)", "(mean - y).square().mean() + logit.square().mean()", False)])
def test_heads_of_a_mixture_that_start_equal_stay_equal(tmp_path, init, target, loss, sick):
    """Those of a regression part: each output has a target of its own."""
    path = tmp_path / "train.py"
    path.write_text(MIXTURE.format(init=init, target=target, loss=loss))
    found = [f for f in diagnose(run_script(str(path), None, []).recording) if f.rule == "symmetric-init" and f.severity != "info"]
    assert bool(found) is sick
    if sick:
        assert "mean.weight" in found[0].message and path.read_text().splitlines()[found[0].location.line - 1].strip() == f"nn.init.{init}"
        assert [f.prescription.treatment for f in found[0].fixes] == ["initialise"]


GRAPH = """
import torch
from torch import nn
torch.manual_seed(0)
links = (torch.rand(150, 150) < 0.3).float()
x, y = torch.randn(150, 6), torch.randint(0, 3, (150,))


class Spread(nn.Module):
    def __init__(self, i):
        super().__init__()
        self.w, self.v = nn.Linear(i, 16), nn.Linear(i, 16)

    def forward(self, h, a):
        return torch.relu(self.w(h) + self.v(a @ h))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.out = nn.ModuleList([Spread(6), Spread(16), Spread(16), Spread(16)]), nn.Linear(16, 3)

    def forward(self, h, a):
        for layer in self.layers:
            h = layer(h, a)
        return self.out(h)


net = Net()
opt = torch.optim.SGD(net.parameters(), lr=0.02)
for epoch in range(30):
    opt.zero_grad()
    nn.functional.cross_entropy(net(x, links{norm}), y).backward()
    opt.step()
"""


@pytest.mark.parametrize(("norm", "sick"), [("", True), (" / links.sum(1, keepdim=True)", False)])
def test_sums_over_neighbours_that_grow_from_layer_to_layer(tmp_path, norm, sick):
    path = tmp_path / "train.py"
    path.write_text(GRAPH.format(norm=norm))
    found = [f for f in diagnose(run_script(str(path), None, []).recording) if f.severity != "info"]
    assert [f.rule for f in found[:1]] == ["signal-explosion"] * sick or not sick and "signal-explosion" not in {f.rule for f in found}
    if sick:
        assert "over 4 layers the signal grows" in found[0].message and found[0].related


UNROLLED = """
import torch
from torch import nn
torch.manual_seed(0)
A = torch.randn(10, 16) / 10**0.5


class Unrolled(nn.Module):
    def __init__(self):
        super().__init__()
        self.S = nn.ParameterList(nn.Parameter(0.1 * torch.randn(16, 16)) for _ in range(3))
        self.B = nn.ParameterList(nn.Parameter(A.t().clone()) for _ in range(3))

    def forward(self, y):
        z = y.new_zeros(len(y), 16)
        for S, B in zip(self.S, self.B):
            z = torch.relu(y @ B.t() + z @ S.t() - 0.05)
        return z


net = Unrolled()
opt = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(150):
    code = torch.relu(torch.randn(64, 16) - 1)
    opt.zero_grad()
    nn.functional.mse_loss(net(code @ A.t()), code).backward()
    opt.step()
"""


def test_the_first_matrix_of_an_unrolled_network_meets_zeros_only(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(UNROLLED)
    found = diagnose(run_script(str(path), None, []).recording)
    assert not [f for f in found if f.severity != "info"] and [f.severity for f in found if f.rule == "no-gradient"] == ["info"]
