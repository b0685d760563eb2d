"""Pixels are never negative and neither are these weights ever positive: no unit of the first layer can become active."""
import torch
from torch import nn


class Digits(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(784, 100)
        self.act1 = nn.ReLU()  # sick: GD201
        self.fc2 = nn.Linear(100, 10)
        nn.init.uniform_(self.fc1.weight, -0.05, 0.0)

    def forward(self, x):
        return self.fc2(self.act1(self.fc1(x.flatten(1))))


example_inputs = (torch.rand(64, 1, 28, 28), torch.randint(0, 10, (64,)))
loss_fn = nn.CrossEntropyLoss()
