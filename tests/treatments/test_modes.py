"""train() where the model trains, requires_grad where it should."""
import pytest

from gradcheck_doctor.errors import TreatmentRefused
from tests.treatments.test_source import edit

LOOP = """
for epoch in range(3):
    for x, y in data:
        loss = f(net(x), y)
        loss.backward()
"""


def test_train_in_front_of_the_batches(tmp_path):
    text = "net = make()\nopt = SGD(net.parameters())\n" + LOOP
    assert edit(tmp_path, text, "train-mode") == text.replace("    for x, y", "    net.train()\n    for x, y")


def test_train_in_the_loop_that_evaluates(tmp_path):
    text = "def score(m):\n    m.eval()\n" + LOOP.replace("backward()", "backward()\n        score(net)") + "net.state_dict()\n"
    assert edit(tmp_path, text, "train-mode") == text.replace("        loss = f", "        net.train()\n        loss = f")


def test_refused_where_the_model_is_not_known(tmp_path):
    for text in (LOOP, "a.train(); b.eval()\n" + LOOP.replace("net(x)", "b(a(x))"), "net.train()\nloss = net(x)\nloss.backward()\n"):
        with pytest.raises(TreatmentRefused, match="train"):
            edit(tmp_path, text, "train-mode")


@pytest.mark.parametrize(("before", "after"), [("p.requires_grad = False", "p.requires_grad = True"), ("p.requires_grad_(False)", "p.requires_grad_(True)")])
def test_unfreeze(tmp_path, before, after):
    text = f"for p in net.body.parameters():\n    {before}\n"
    assert edit(tmp_path, text, "unfreeze", where=before, modules=("body",)) == text.replace(before, after)
