"""Cures in loops that change the weights themselves, and steps that are never taken."""
import pytest

from gradcheck_doctor.errors import TreatmentRefused
from tests.treatments.test_styles import cured

HEAD = "import torch\nfrom torch import nn\nnet = nn.Linear(3, 2)\nlr = 0.5\n"


def loop(update, *before):
    rows = ["loss = f(net(x), y)", *before, "loss.backward()", "with torch.no_grad():", "    for p in net.parameters():", f"        {update}"]
    return HEAD + "for x, y in data:\n" + "".join(f"    {row}\n" for row in rows)


@pytest.mark.parametrize("update", ["p -= {} * p.grad", "p.sub_({} * p.grad)", "p.add_(p.grad, alpha=-{})", "p.data = p.data - p.grad * {}",
                                    "p.copy_(p - {} * p.grad / n)"])
@pytest.mark.parametrize("rate", ["0.5", "lr"])
def test_the_rate_of_an_update_written_out(tmp_path, update, rate):
    before = loop(update.format(rate))
    after = before.replace("lr = 0.5", "lr = 0.05") if rate == "lr" else loop(update.format("0.05"))
    assert cured(tmp_path, before, "learning-rate", where=update.format(rate), lr=0.05, old=0.5) == after


@pytest.mark.parametrize("update", ["p -= step(p.grad)", "p -= p.grad"])
def test_a_rate_that_is_not_there(tmp_path, update):
    with pytest.raises(TreatmentRefused, match="can't be read"):
        cured(tmp_path, loop(update), "learning-rate", where=update, lr=0.05, old=0.5)


def test_zero_grad_of_the_model_where_there_is_no_optimizer(tmp_path):
    update = "p -= lr * p.grad"
    assert cured(tmp_path, loop(update), "zero-grad", where=update) == loop(update, "net.zero_grad()")


STEPS = HEAD + "opt = torch.optim.SGD(net.parameters(), 0.1)\nfor x, y in data:\n    f(net(x), y).backward()\n"


def test_a_step_gets_its_brackets(tmp_path):
    assert cured(tmp_path, STEPS + "    opt.step  # now\n", "call-step", where="opt.step") == STEPS + "    opt.step()  # now\n"


def test_a_step_is_taken_behind_backward(tmp_path):
    assert cured(tmp_path, STEPS + "    print(x)\n", "call-step") == STEPS + "    opt.step()\n    print(x)\n"


@pytest.mark.parametrize("text", [STEPS + "    g(net(x)).backward()\n", HEAD + "def make():\n    opt = torch.optim.SGD(net.parameters(), 0.1)\n\n\nf(net(x)).backward()\n"])
def test_a_place_for_the_step_that_cannot_be_told(tmp_path, text):
    with pytest.raises(TreatmentRefused, match="can't be told"):
        cured(tmp_path, text, "call-step")
