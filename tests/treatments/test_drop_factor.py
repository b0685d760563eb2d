"""A factor that leaves nothing of the signal is taken out where it stands."""
import pytest

from gradcheck_doctor.errors import TreatmentRefused
from tests.treatments.test_styles import check, cured

HEAD = "import torch\nclass Net:\n    SCALE = 1e-5\n    def forward(self, x):\n"


@pytest.mark.parametrize(("before", "after", "where"), [
    ("h = torch.relu(x) * self.SCALE", "h = torch.relu(x)", "torch.relu(x) * self.SCALE"),
    ("h = 1e-5 * (x + 1)", "h = x + 1", "1e-5 * (x + 1)"),
    ("h = f(1e-5 * (x + 1) - y)", "h = f((x + 1) - y)", "1e-5 * (x + 1)"),
    ("h = x.mul(1e-5)", "h = x", "x.mul(1e-5)"),
    ("h = torch.mul(x, 1e-5)", "h = x", "torch.mul(x, 1e-5)")])
def test_a_product(tmp_path, before, after, where):
    check(tmp_path, HEAD + f"        {before}\n", HEAD + f"        {after}\n", "drop-factor", where=where, factor=1e-5)


def test_a_quotient(tmp_path):
    check(tmp_path, HEAD + "        return x / 2000\n", HEAD + "        return x\n", "drop-factor", where="x / 2000", factor=2000.0)


@pytest.mark.parametrize("text", ["x * g(y)", "x * y * 1e-3"])
def test_a_factor_that_is_not_there_is_refused(tmp_path, text):
    with pytest.raises(TreatmentRefused, match="could not be found"):
        cured(tmp_path, HEAD + f"        return {text}\n", "drop-factor", where=text, factor=1e-5)
