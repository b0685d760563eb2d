"""Softmax between two layers: 64 hidden values that sum to 1, each about 1/64."""
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(20, 64)
        self.fc2 = nn.Linear(64, 5)

    def forward(self, x):
        x = F.softmax(self.fc1(x), dim=1)  # sick: GD206
        return self.fc2(x)


example_inputs = (torch.randn(128, 20), torch.randint(0, 5, (128,)))
loss_fn = nn.CrossEntropyLoss()
