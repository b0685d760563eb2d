import sys
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent), *(str(Path(__file__).parent / name) for name in ("cli", "observe"))]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_rule_of_ours_fails(monkeypatch):
    """For users it is said and left out; here it fails the test."""
    from gradcheck_doctor.rules import engine

    said = engine.complain

    def complain(message):
        assert " of gradcheck_doctor." not in message, message
        said(message)
    monkeypatch.setattr(engine, "complain", complain)
