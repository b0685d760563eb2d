"""The line that gave a weight its values, where no nn.init call says it."""
import pytest

from gradcheck_doctor.integrations.script import run_script
from gradcheck_doctor.session import audit_target
from gradcheck_doctor.targets.resolve import resolve

HEAD = """import torch
from torch import nn
torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(32, 32) for _ in range(16)])
        self.head = nn.Linear(32, 4)
        self.apply(weights)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


def weights(m):
    if isinstance(m, nn.Linear):
        {}


model = Net()
example_inputs = torch.randn(64, 32)
"""


def seen(tmp_path, text):
    (tmp_path / "m.py").write_text(text)
    recording = audit_target(resolve(str(tmp_path / "m.py"))[0]).recording
    return {r.name: r for r in recording.parameters}, text.splitlines()


@pytest.mark.parametrize("call", ["m.weight.data.normal_(0.0, 0.02)", "m.weight.data.normal_(std=0.02, mean=0)", "m.weight.data.uniform_(-0.01, 0.01)",
                                  "m.weight.data.fill_(0.1)", "m.weight.data.zero_()", "m.weight.data = torch.randn_like(m.weight) * 0.3"])
def test_a_weight_that_is_filled_in_place(tmp_path, call):
    records, lines = seen(tmp_path, HEAD.format(call))
    for name in ("layers.0.weight", "head.weight"):
        origin = records[name].origin
        assert lines[origin.line - 1].strip() == call
        assert origin.column == 9
    assert records["layers.0.bias"].origin is None


def test_of_several_fills_the_numbers_tell(tmp_path):
    fills = "m.weight.data.normal_(0.0, 0.5)\n    elif isinstance(m, nn.BatchNorm1d):\n        m.weight.data.normal_(1.0, 0.02)"
    records, lines = seen(tmp_path, HEAD.format(fills))
    assert lines[records["head.weight"].origin.line - 1].strip() == "m.weight.data.normal_(0.0, 0.5)"


@pytest.mark.parametrize("call", ["pass", "m.weight.data.mul_(1.0)", "nn.init.zeros_(m.bias)"])
def test_a_default_has_no_line(tmp_path, call):
    records, _ = seen(tmp_path, HEAD.format(call))
    assert records["head.weight"].origin is None


def test_a_parameter_of_a_class_of_ones_own(tmp_path):
    text = """import torch
from torch import nn


class Dense(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(width, width) * 2)
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return x @ self.kernel + self.shift


model = nn.Sequential(Dense(16), nn.Tanh(), Dense(16), nn.Tanh(), nn.Linear(16, 2))
example_inputs = torch.randn(64, 16)
"""
    records, lines = seen(tmp_path, text)
    assert lines[records["0.kernel"].origin.line - 1].strip() == "self.kernel = nn.Parameter(torch.randn(width, width) * 2)"
    assert lines[records["2.shift"].origin.line - 1].strip() == "self.shift = nn.Parameter(torch.zeros(width))"
    assert records["4.weight"].origin is None


def test_what_is_drawn_by_nn_init_is_named_by_it(tmp_path):
    records, lines = seen(tmp_path, HEAD.format("nn.init.normal_(m.weight, std=0.02)"))
    assert lines[records["head.weight"].origin.line - 1].strip() == "nn.init.normal_(m.weight, std=0.02)"
    assert records["head.weight"].made is None


def test_of_several_schemes_that_fit_the_one_that_was_called_is_named(tmp_path):
    """Of a small weight He and Glorot uniform can't be told apart by its values."""
    text = HEAD.replace("nn.Linear(32, 4)", "nn.Linear(32, 5)")
    for call, name in (("nn.init.xavier_uniform_(m.weight)", "glorot uniform"), ("nn.init.kaiming_uniform_(m.weight)", "he uniform")):
        records, _ = seen(tmp_path, text.format(call))
        assert records["head.weight"].scheme.startswith(name)


BARE = """import torch
torch.manual_seed(0)
x = torch.randn(64, 20)
y = (x[:, 0] > 0).long()
{}
for k in range(40):
    h = torch.tanh({} + b1)
    loss = torch.nn.functional.cross_entropy(torch.mm(h, W2), y)
    loss.backward()
    for w in (W1, b1, W2):
        w.data -= 0.1 * w.grad
        w.grad = None
"""


@pytest.mark.parametrize(("made", "used"), [
    ("W1 = torch.randn(20, 64) * 5\nW1.requires_grad_()", "x @ W1"), ("W1 = torch.randn(64, 20, requires_grad=True)", "x @ W1.t()"),
    ("W1 = torch.nn.Parameter(torch.randn(20, 64))", "torch.matmul(x, W1)"), ("W1, c = torch.zeros(64, 20, requires_grad=True), 1", "torch.nn.functional.linear(x, W1)")])
def test_a_bare_weight_is_made_where_its_name_is_given_a_value(tmp_path, made, used):
    text = BARE.format(made + "\nW2 = torch.randn(64, 2).mul_(0.1).requires_grad_()\nb1 = torch.zeros(64, requires_grad=True)", used)
    (tmp_path / "train.py").write_text(text)
    result = run_script(str(tmp_path / "train.py"), None, [])
    lines, places = text.splitlines(), {r.shape: r.origin for r in result.recording.parameters if len(r.shape) == 2}
    assert not result.crash and len(places) == 2
    for origin, name in ((next(o for shape, o in places.items() if 20 in shape), "W1"), (places[64, 2], "W2")):
        assert lines[origin.line - 1].startswith(name) and origin.column > 1
