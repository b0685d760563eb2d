"""Sparse gradients in throw-away steps; one file of a folder whose probe fails does not end the others."""
import pytest
import torch
from torch import nn

import gradcheck_doctor as doctor
from gradcheck_doctor.cli.options import Probe
from gradcheck_doctor.cli.probing import probed
from gradcheck_doctor.errors import ProbeError

GOOD = "from torch import nn\nmodel = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))\n"
FAILING = ("import torch\nfrom torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(8, 2)\n"
           "    def forward(self, x):\n        {body}\n")


@pytest.mark.parametrize("options", [{}, {"steps": 3}, {"overfit": True}])
def test_sparse_embeddings_can_be_probed(options):
    class Items(nn.Module):
        def __init__(self):
            super().__init__()
            self.items, self.users = nn.Embedding(50, 8, sparse=True), nn.Embedding(20, 8, sparse=True)
            nn.init.zeros_(self.users.weight)                              # so that a plain audit takes a few steps, too

        def forward(self, item, user):
            return (self.items(item) * self.users(user)).sum(1)

    model = Items()
    before = model.items.weight.detach().clone()
    doctor.audit(model, (torch.randint(50, (32,)), torch.randint(20, (32,))), **options)
    assert torch.equal(model.items.weight, before) and model.items.weight.grad is None


@pytest.mark.parametrize("body", ["return self.a(x).detach()", "raise KeyError('x')"])
def test_a_file_whose_probe_fails_is_named_and_the_others_are_audited(tmp_path, capsys, body):
    (tmp_path / "a.py").write_text(FAILING.format(body=body))
    (tmp_path / "b.py").write_text(GOOD)
    broken = []
    report, = probed([str(tmp_path)], Probe(None, None, None, (), 0, False, None, 0), False, broken=broken)
    assert report.target.endswith("b.py") and len(broken) == 1 and "passed over" in broken[0] and "a.py" in broken[0]


def test_where_all_fail_the_reason_is_raised(tmp_path):
    (tmp_path / "a.py").write_text(FAILING.format(body="return self.a(x).detach()"))
    with pytest.raises(ProbeError, match="no gradient can be measured"):
        probed([str(tmp_path)], Probe(None, None, None, (), 0, False, None, 0), False)
