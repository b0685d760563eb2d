"""A bias of 1 keeps the forget gates open at the start."""
import torch
from torch import nn


class Tagger(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.lstm = nn.LSTM(8, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 4)
        nn.init.constant_(self.lstm.bias_ih_l0[hidden : 2 * hidden], 1.0)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


example_inputs = torch.randn(64, 8, 8)
