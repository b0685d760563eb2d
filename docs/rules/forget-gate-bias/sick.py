"""The forget gates of this LSTM start half closed."""
import torch
from torch import nn


class Tagger(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.lstm = nn.LSTM(8, hidden, batch_first=True)  # sick: GD407 info
        self.head = nn.Linear(hidden, 4)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


example_inputs = torch.randn(64, 8, 8)
