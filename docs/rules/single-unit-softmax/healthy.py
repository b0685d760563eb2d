"""A single output takes a sigmoid."""
import torch
from torch import nn

model = nn.Sequential(
    nn.Linear(20, 32),
    nn.ReLU(),
    nn.Linear(32, 1),
    nn.Sigmoid(),
)
example_inputs = (torch.randn(128, 20), torch.randint(0, 2, (128, 1)).float())
criterion = nn.BCELoss()
