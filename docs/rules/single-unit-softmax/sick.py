"""Softmax over a single output is always 1, and its gradient exactly 0."""
import torch
from torch import nn

model = nn.Sequential(
    nn.Linear(20, 32),
    nn.ReLU(),
    nn.Linear(32, 1),
    nn.Softmax(dim=1),  # sick: GD602
)
example_inputs = (torch.randn(128, 20), torch.randint(0, 2, (128, 1)).float())
criterion = nn.BCELoss()
