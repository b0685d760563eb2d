"""A classifier whose hidden layer starts with one and the same weight everywhere: its 64 units stay one unit."""
import torch
from torch import nn


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(20, 64)
        self.output = nn.Linear(64, 3)
        nn.init.constant_(self.hidden.weight, 0.1)  # sick: GD101

    def forward(self, x):
        return self.output(torch.relu(self.hidden(x)))


example_inputs = (torch.randn(128, 20), torch.randint(0, 3, (128,)))
loss_fn = nn.CrossEntropyLoss()
