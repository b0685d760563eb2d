"""Gradients are let through again: detach and no_grad go, zero_grad() moves in front of backward; every other byte stays."""
import pytest

from gradcheck_doctor.errors import TreatmentRefused
from tests.treatments.test_styles import cured

HEAD = "import torch\nfrom torch import nn\n"


def loop(*lines):
    return HEAD + "for x, y in data:\n" + "".join(f"    {line}\n" for line in lines)


@pytest.mark.parametrize(("before", "after"), [
    ("out = f(h[-1].detach())", "out = f(h[-1])"), ("out = 2 * (a + b).detach()", "out = 2 * (a + b)"), ("out = f(torch.detach(h))", "out = f(h)"),
    ("out = 2 * torch.detach(a + b)", "out = 2 * (a + b)"), ("out = f(h . detach( ))", "out = f(h)")])
def test_without_detach(tmp_path, before, after):
    where = before.removeprefix("out = ").removeprefix("2 * ")
    where = where[2:-1] if where.startswith("f(") else where
    assert cured(tmp_path, HEAD + before + "\n", "remove-detach", where=where) == HEAD + after + "\n"


@pytest.mark.parametrize(("before", "where", "after"), [
    ("out = g(f(h).data)", "f(h).data", "out = g(f(h))"), ("out = g(f(h).data)", "f(h)", "out = g(f(h))"),
    ("h = f(x)\nout = g(h.data)", "f(x)", "h = f(x)\nout = g(h)")])
def test_without_data(tmp_path, before, where, after):
    assert cured(tmp_path, HEAD + before + "\n", "remove-detach", where=where, by="data") == HEAD + after + "\n"


def test_data_of_elsewhere_or_of_several_places_is_left(tmp_path):
    for text in ("h = f(x)\n", "h = f(x)\nout = g(h.data, h.data)\n"):
        with pytest.raises(TreatmentRefused, match=".data is not taken there"):
            cured(tmp_path, HEAD + text, "remove-detach", where="f(x)", by="data")


def test_a_detach_inside_a_function_called_there(tmp_path):
    with pytest.raises(TreatmentRefused, match="not called there"):
        cured(tmp_path, HEAD + "out = frozen(h)\n", "remove-detach", where="frozen(h)")


@pytest.mark.parametrize("zero", ["opt.zero_grad()", "model.zero_grad()", "opt.zero_grad(set_to_none=False)"])
def test_zero_grad_in_front_of_backward(tmp_path, zero):
    before = loop("loss = f(model(x), y)", "loss.backward()", f"{zero}  # fresh", "clip(model)", "opt.step()")
    after = loop("loss = f(model(x), y)", zero, "loss.backward()", "clip(model)", "opt.step()")
    assert cured(tmp_path, before, "move-zero-grad", where=zero) == after


@pytest.mark.parametrize(("before", "after"), [
    (["loss.backward(); opt.zero_grad(); opt.step()"], ["opt.zero_grad()", "loss.backward(); opt.step()"]),
    (["loss = f(x); loss.backward(); opt.zero_grad()", "opt.step()"], ["loss = f(x); opt.zero_grad(); loss.backward()", "opt.step()"]),
    (["loss.backward()", "if i % 4 == 3:", "    opt.zero_grad()", "    opt.step()"],
     ["loss.backward()", "if i % 4 == 3:", "    opt.step()", "    opt.zero_grad()"]),
    (["with scaled(loss) as s:", "    s.backward()", "opt.zero_grad()", "opt.step()"],
     ["opt.zero_grad()", "with scaled(loss) as s:", "    s.backward()", "opt.step()"])], ids=["one line", "end of a line", "accumulation", "with"])
def test_zero_grad_in_other_places(tmp_path, before, after):
    assert cured(tmp_path, loop(*before), "move-zero-grad", where="opt.zero_grad()") == loop(*after)


@pytest.mark.parametrize("lines", [["loss.backward()", "if late: opt.zero_grad()", "opt.step()"], ["opt.zero_grad()", "print(x)"]])
def test_a_zero_grad_that_is_left_to_a_person(tmp_path, lines):
    with pytest.raises(TreatmentRefused, match="in front of backward"):
        cured(tmp_path, loop(*lines), "move-zero-grad", where="opt.zero_grad()")


def forward(*lines):
    return HEAD + "class Net(nn.Module):\n    def forward(self, x):\n" + "".join(f"        {line}\n" for line in lines)


@pytest.mark.parametrize(("before", "after"), [
    (["with torch.no_grad():", "    # frozen", "    x = self.a(", "      x)", "", "    for b in self.blocks:", "        x = b(x)", "return x"],
     ["# frozen", "x = self.a(", "  x)", "", "for b in self.blocks:", "    x = b(x)", "return x"]),
    (["with torch.no_grad(), torch.autocast('cpu'):", "    x = self.a(x)", "return x"], ["with torch.autocast('cpu'):", "    x = self.a(x)", "return x"]),
    (["with open(p) as f, torch.no_grad():", "    x = self.a(x)", "return x"], ["with open(p) as f:", "    x = self.a(x)", "return x"])],
    ids=["a block", "the first of two", "the last of two"])
def test_a_block_outside_of_no_grad(tmp_path, before, after):
    assert cured(tmp_path, forward(*before), "leave-no-grad", where="torch.no_grad()").replace("        \n", "\n") == forward(*after).replace("        \n", "\n")


def test_a_decorator_goes(tmp_path):
    text = HEAD + "class Net(nn.Module):\n    @torch.no_grad()\n    def encode(self, x):\n        return self.a(x)\n"
    assert cured(tmp_path, text, "leave-no-grad", where="torch.no_grad()") == text.replace("    @torch.no_grad()\n", "")


@pytest.mark.parametrize(("lines", "where"), [
    (["with torch.set_grad_enabled(self.tune):", "    x = self.a(x)", "return x"], "torch.set_grad_enabled(self.tune)"),
    (["with torch.no_grad(): x = self.a(x)", "return x"], "torch.no_grad()"),
    (["with torch.no_grad():", '    x = self.a(x, """', 'long""")', "return x"], "torch.no_grad()")], ids=["a condition", "one line", "a long string"])
def test_a_block_that_is_left_to_a_person(tmp_path, lines, where):
    with pytest.raises(TreatmentRefused, match="by hand|are to be trained"):
        cured(tmp_path, forward(*lines), "leave-no-grad", where=where)


def test_the_optimizer_is_made_again_behind_the_model_that_replaces_another(tmp_path):
    before = HEAD + ("net = Net()\nopt = torch.optim.SGD(net.parameters(), lr=0.1)\nplan = ExponentialLR(opt, 0.9)\n"
                     "for fold in folds:\n    net = Net()\n    train(net, opt)\n")
    made = "    net = Net()\n"
    again = "    opt = torch.optim.SGD(net.parameters(), lr=0.1)\n    plan = ExponentialLR(opt, 0.9)\n"
    after = before.replace(f"{made}    train", f"{made}{again}    train")
    where = "torch.optim.SGD(net.parameters(), lr=0.1)"
    assert cured(tmp_path, before, "remake-optimizer", where=where) == after
    with pytest.raises(TreatmentRefused, match="behind the statement that makes the net"):
        cured(tmp_path, before.replace("    net = Net()\n", ""), "remake-optimizer", where=where)
