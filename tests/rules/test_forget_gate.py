"""A forget gate that starts closed: how far open it has to be depends on the length of the sequences."""
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradcheck_doctor as doctor


class Recall(nn.Module):
    """LSTM, fused or as a cell, whose forget gates start at -1."""

    def __init__(self, fused, batch_first=True):
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=batch_first) if fused else nn.LSTMCell(4, 8)
        self.head, self.first = nn.Linear(8, 3), batch_first
        for name, parameter in self.lstm.named_parameters():
            if "bias" in name:
                nn.init.zeros_(parameter)
                parameter.data[8:16].fill_(-1.0)

    def forward(self, x):
        if isinstance(self.lstm, nn.LSTM):
            out = self.lstm(x if self.first else x.transpose(0, 1))[0]
            return self.head(out[:, -1] if self.first else out[-1])
        state = None
        for step in range(x.shape[1]):
            state = self.lstm(x[:, step], state)
        return self.head(state[0])


def values(model, length):
    torch.manual_seed(0)
    report = doctor.audit(model, (torch.randn(16, length, 4), torch.randint(0, 3, (16,))), loss=F.cross_entropy)
    return [fix.prescription.arguments["value"] for f in report.findings if f.rule == "forget-gate-bias" for fix in f.fixes]


@pytest.mark.parametrize("fused", [True, False])
def test_long_sequences_offer_a_memory_of_their_length(fused):
    assert values(Recall(fused), 45) == [1.0, pytest.approx(math.log(45), abs=0.05)]
    assert values(Recall(fused), 8) == [1.0]


def test_time_comes_first_where_the_layer_says_so():
    assert values(Recall(True, batch_first=False), 60) == [1.0, pytest.approx(math.log(60), abs=0.05)]
