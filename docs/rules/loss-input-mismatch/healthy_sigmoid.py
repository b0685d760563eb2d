"""The model gives raw scores; BCEWithLogitsLoss applies the sigmoid."""
import torch
from torch import nn


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(20, 64)
        self.score = nn.Linear(64, 1)

    def forward(self, x):
        x = torch.relu(self.hidden(x))
        return self.score(x)


example_inputs = (torch.randn(128, 20), torch.randint(0, 2, (128, 1)).float())
criterion = nn.BCEWithLogitsLoss()
