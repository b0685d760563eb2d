"""What is read from the user's source, without running it."""
import pytest

from gradcheck_doctor.observe.source import source


@pytest.mark.parametrize(("text", "lines"), [
    ("def score(net):\n    net.eval()\n    return net(x)\n\nfor e in range(3):\n    score(net)\n", (2, None)),
    ("def score(net):\n    net.eval()\n    y = net(x)\n    net.train()\n    return y\n", (None, None)),
    ("def score(net):\n    df.eval('a')\n\nnet.eval()\n", (4, None)),
    ("for p in net.parameters():\n    p.requires_grad = False\n", (None, 2)),
    ("é = 1; net.body.requires_grad_(False)\n", (None, 1)),
    ("p.requires_grad = True\nq.requires_grad_(flag)\n", (None, 2)),
    ("p.requires_grad = flag\nq.requires_grad_(False)\n", (None, 2)), ("p.requires_grad = True\nq.requires_grad_()\n", (None, None)), ("def broken(:\n", (None, None))])
def test_lines_found(tmp_path, text, lines):
    path = tmp_path / "script.py"
    path.write_text(text)
    of = source(str(path))
    found = (of and of.left_in_eval, of and of.freezing)
    assert tuple(span and span.line for span in found) == lines
    if "é" in text:
        assert (found[1].column, found[1].end_column) == (8, 38)


def test_a_name_that_means_a_gradient_in_one_function_does_not_in_another(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("def cell(c, f, i, g):\n    c = f * c + i * g\n    return c\n\n\n"
                    "def fit(w, loss):\n    for p, g in zip(w, torch.autograd.grad(loss, w)):\n        p -= 0.1 * g\n")
    assert [span.line for span in source(str(path)).own_updates] == [8]
