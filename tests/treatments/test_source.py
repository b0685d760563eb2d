"""Golden source edits: what a careful colleague would write, every other byte kept."""
import textwrap

import pytest

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, LayerRow, Prescription, ReportData
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.plan import PLANNERS
from gradcheck_doctor.treatments.tree import applied, read


def span_of(path, text, expression, nth=0):
    lines = text.splitlines()
    found = [(n, line.index(expression)) for n, line in enumerate(lines, 1) if expression in line]
    line, column = found[nth]
    return Span(str(path), line, column + 1, line, column + 1 + len(expression))


def edit(tmp_path, text, treatment, *, layers=(), where=None, op="", modules=(), **arguments):
    """The text after one treatment; `layers` are (module, op, expression)."""
    text = textwrap.dedent(text)
    path = tmp_path / "net.py"
    path.write_text(text)
    rows = tuple(LayerRow(m, o, i, True, span_of(path, text, e), weight={"std": 1.0} if o in ("linear", "conv2d") else {}) for i, (m, o, e) in enumerate(layers))
    span = span_of(path, text, where) if where else None
    chosen = modules or tuple(m for m, _, _ in layers)
    finding = Finding("GD000", "x", "error", "m", chosen[0] if chosen else "", chosen, op, span or (rows[0].location if rows else None))
    edits = PLANNERS[treatment](Context(str(path), rows), finding, Prescription(treatment, "t", modules=chosen, span=span, arguments=arguments))
    return applied(text, edits)


def test_init_loop_at_the_end_of_the_class(tmp_path):
    text = """\
        import torch.nn as nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Linear(4, 8)   # first
                self.b = nn.Linear(8, 2)

            def forward(self, x):
                return self.b(self.a(x).relu())
        """
    after = edit(tmp_path, text, "initialise", layers=[("a", "linear", "nn.Linear(4, 8)"), ("b", "linear", "nn.Linear(8, 2)")], scheme="he normal")
    assert after == textwrap.dedent(text).replace("self.b = nn.Linear(8, 2)\n", """\
self.b = nn.Linear(8, 2)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
""")


def test_init_loop_in_a_factory_and_behind_a_module_level_model(tmp_path):
    factory = "from torch import nn\ndef make():\n    layers = [nn.Linear(4, 4)]\n    return nn.Sequential(*layers)\n"
    after = edit(tmp_path, factory, "initialise", layers=[("0", "linear", "nn.Linear(4, 4)")], scheme="lecun normal")
    assert after.startswith("from torch import nn\ndef make():\n    layers = [nn.Linear(4, 4)]\n    model = nn.Sequential(*layers)\n    for module in model.modules():\n")
    assert after.endswith("    return model\n")
    script = "import torch\nmodel = torch.nn.Sequential(torch.nn.Linear(4, 4))\nprint(model)\n"
    after = edit(tmp_path, script, "initialise", layers=[("0", "linear", "torch.nn.Linear(4, 4)")], scheme="glorot uniform")
    assert "torch.nn.init.xavier_uniform_(module.weight)" in after and after.index("for module in model") < after.index("print")


def test_the_users_own_init_call_is_corrected_instead(tmp_path):
    text = "from torch import nn\nlayer = nn.Linear(3, 3)\nnn.init.normal_(layer.weight, std=0.01)  # mine\n"
    after = edit(tmp_path, text, "initialise", where="nn.init.normal_(layer.weight, std=0.01)", modules=("x",), scheme="he normal")
    assert after == text.replace("nn.init.normal_(layer.weight, std=0.01)", 'nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")')


@pytest.mark.parametrize(("text", "expression", "expected"), [
    ("model = nn.Sequential(nn.Linear(3, 3), nn.Sigmoid(), nn.Linear(3, 1))", "nn.Sigmoid()", "model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))"),
    ("y = torch.sigmoid(fc(x))", "torch.sigmoid(fc(x))", "y = torch.relu(fc(x))"), ("y = fc(x).sigmoid()", "fc(x).sigmoid()", "y = torch.relu(fc(x))")])
def test_replace_activation(tmp_path, text, expression, expected):
    head = "import torch\nfrom torch import nn\n"
    after = edit(tmp_path, head + text + "\n", "replace-activation", layers=[("1", "sigmoid", expression)], op="sigmoid", to="relu")
    assert after == head + expected + "\n"


@pytest.mark.parametrize(("text", "expression", "expected"), [
    ("m = nn.Sequential(nn.Linear(3, 2), nn.Softmax(dim=1))", "nn.Softmax(dim=1)", "m = nn.Sequential(nn.Linear(3, 2))"),
    ("act = nn.Softmax(dim=1)", "nn.Softmax(dim=1)", "act = nn.Identity()"), ("y = F.softmax(fc(x), dim=1)", "F.softmax(fc(x), dim=1)", "y = fc(x)"),
    ("y = fc(x).softmax(-1)", "fc(x).softmax(-1)", "y = fc(x)")])
def test_remove_output_activation(tmp_path, text, expression, expected):
    head = "from torch import nn\nimport torch.nn.functional as F\n"
    assert edit(tmp_path, head + text + "\n", "remove-output-activation", where=expression) == head + expected + "\n"


LOOP = """\
import torch
def train(model, batches, lr=0.8):
    opt = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for x, y in batches:
        loss = (model(x) - y).square().mean()
        loss.backward()
        opt.step()
"""


def test_learning_rate_where_it_is_defined(tmp_path):
    made = "torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)"
    assert edit(tmp_path, LOOP, "learning-rate", where=made, lr=0.08) == LOOP.replace("lr=0.8", "lr=0.08")


def test_zero_grad_and_clip(tmp_path):
    assert edit(tmp_path, LOOP, "zero-grad", where="opt.step()") == LOOP.replace("        loss.backward()", "        opt.zero_grad()\n        loss.backward()")
    after = edit(tmp_path, LOOP, "clip-by-norm", where="opt.step()", max_norm=1.0)
    assert after == LOOP.replace("        opt.step()", "        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n        opt.step()")


def test_clip_in_a_trainer_and_windows_line_ends(tmp_path):
    assert edit(tmp_path, "import pytorch_lightning as pl\nt = pl.Trainer(max_epochs=3)\n", "clip-by-norm", max_norm=1.0).endswith(
        "t = pl.Trainer(max_epochs=3, gradient_clip_val=1.0)\n")
    path = tmp_path / "crlf.py"
    path.write_bytes(b"a = 1\r\nb = 2\r\n")
    tree = read(str(path))
    assert applied(tree.text, [tree.before(tree.root.body[1], ["c = 3"])]) == "a = 1\r\nc = 3\r\nb = 2\r\n"


def test_norm_input_norm_loss_and_registration(tmp_path):
    head = "from torch import nn\n"
    text = head + "m = nn.Sequential(nn.Linear(3, 8), nn.Sigmoid(), nn.Linear(8, 1))\n"
    layers = [("0", "linear", "nn.Linear(3, 8)"), ("2", "linear", "nn.Linear(8, 1)")]
    assert "nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Sigmoid(), nn.Linear(8, 1)" in edit(tmp_path, text, "insert-norm", layers=layers, norm="batch")
    assert "nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 8)," in edit(tmp_path, text, "input-norm", layers=layers[:1], op="linear")
    assert edit(tmp_path, head + "loss = nn.NLLLoss()\n", "replace-loss", to="cross_entropy") == head + "loss = nn.CrossEntropyLoss()\n"
    assert "self.b = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])" in edit(
        tmp_path, head + "class A:\n    def f(self):\n        self.b = [nn.Linear(2, 2) for _ in range(3)]\n", "register-modules", where="nn.Linear(2, 2)")


def test_refusals_say_why(tmp_path):
    path = tmp_path / "made.py"
    path.write_text("# @generated by a tool\nx = 1\n")
    with pytest.raises(TreatmentRefused, match="generated"):
        read(str(path))
    with pytest.raises(TreatmentRefused, match="same expression"):
        applied("abc = 1\n", [Edit(Span("f", 1, 1, 1, 4), "x"), Edit(Span("f", 1, 2, 1, 5), "y")])
    with pytest.raises(TreatmentRefused, match="would not parse"):
        applied("abc = 1\n", [Edit(Span("f", 1, 1, 1, 4), "(")])
    with pytest.raises(TreatmentRefused, match="can't be told"):
        edit(tmp_path, LOOP.replace("lr=0.8", "rate").replace("lr=lr", "lr=rate"), "learning-rate",
             where="torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)", lr=0.1)


def test_a_write_keeps_the_mode_and_leaves_no_remains(tmp_path, monkeypatch):
    from gradcheck_doctor.patch import Patch
    path = tmp_path / "s.py"
    path.write_text("old\n")
    path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    Patch("s.py", "old\n", "new\n").write()
    assert path.read_text() == "new\n" and path.stat().st_mode & 0o777 == 0o755 and list(tmp_path.iterdir()) == [path]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(TreatmentRefused, match="outside"):
        Patch(str(path), "new\n", "x\n").write()
    assert path.read_text() == "new\n"


def test_a_finding_without_a_known_edit_is_refused_not_guessed():
    from gradcheck_doctor.records.findings import Fix
    from gradcheck_doctor.treatments.plan import planned
    finding = Finding("GD000", "x", "error", "m", fixes=(Fix(Prescription("pray", "Hope", "unsafe")),))
    report = ReportData("a.py", "run", {}, {}, (finding,))
    (_, fix), = planned(report, "a.py", unsafe=True)
    assert "no source edit" in fix.refusal
    (_, fix), = planned(report, "a.py", unsafe=False)
    assert "--unsafe-fixes" in fix.refusal
