"""Counts under a logarithm: the zeros among them become minus infinity."""
import torch
from torch import nn


class CountModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(12, 32)
        self.output = nn.Linear(32, 3)

    def forward(self, counts):
        x = torch.log(counts)  # sick: GD801
        return self.output(torch.relu(self.hidden(x)))


example_inputs = (torch.poisson(torch.full((128, 12), 2.0)), torch.randint(0, 3, (128,)))
loss_fn = nn.CrossEntropyLoss()
