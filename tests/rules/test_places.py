"""The line that a finding names."""
import textwrap

import pytest

from gradcheck_doctor.integrations.script import run_script
from gradcheck_doctor.rules.engine import diagnose

LOOP = """
    import torch, torch.nn.functional as F
    from torch import nn
    torch.manual_seed(0)
    x = torch.randn(256, 8); y = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    opt = torch.optim.SGD(model.parameters(), 0.1)
    for i in range(30):
        p = F.softmax(model(x), -1)
        loss = F.cross_entropy(p, y)
        opt.zero_grad(); loss.backward(); opt.step()
"""


def test_what_the_loop_calls_is_named_there_and_not_where_the_model_is_built(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(LOOP).lstrip())
    finding, = [f for f in diagnose(run_script(str(script), None, []).recording) if f.rule == "loss-input-mismatch"]
    assert finding.location.line == 8 and finding.fixes[0].prescription.span.line == 8


def test_an_optimizer_of_a_model_that_was_replaced(tmp_path):
    script = tmp_path / "train.py"
    text = textwrap.dedent(LOOP).lstrip().replace("for i", "model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))\nfor i")
    script.write_text(text)
    finding, = [f for f in diagnose(run_script(str(script), None, []).recording) if f.rule == "unoptimized-parameter"]
    assert finding.location.line == 6 and "replaced after it" in finding.message and finding.fixes[0].prescription.treatment == "remake-optimizer"


LOAD = """
    import torch
    from torch import nn
    import torch.nn.functional as F
    torch.manual_seed(0)
    x = torch.randn(256, 8); y = (x[:, 0] > 0).long()
    def net(): return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    model = net()
    model.load_state_dict({%s: v for k, v in net().state_dict().items()}, strict=False)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    for i in range(20):
        loss = F.cross_entropy(model(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
"""


@pytest.mark.parametrize(("named", "old", "new"), [
    ('"module." + k', "module.", ""), ('k.replace("0.", "encoder.0.", 1)', "encoder.", ""), ('k[2:] if k[0] == "0" else k', "", "0."),
    ('"first" + k[1:] if k[0] == "0" else "head" + k[1:]', "first.", "0.")])
def test_weights_whose_names_begin_otherwise_are_renamed(tmp_path, named, old, new):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(LOAD % named).lstrip())
    finding, = [f for f in diagnose(run_script(str(script), None, []).recording) if f.rule == "weights-not-loaded"]
    cure = finding.fixes[0].prescription
    assert (cure.treatment, cure.arguments["old"], cure.arguments["new"], cure.span.line) == ("rename-keys", old, new, 8)


def test_weights_under_their_own_names_are_loaded(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(LOAD % "k").lstrip())
    assert not [f for f in diagnose(run_script(str(script), None, []).recording) if f.rule == "weights-not-loaded"]
