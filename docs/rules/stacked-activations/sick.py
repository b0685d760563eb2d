"""Sigmoid behind ReLU: its values start at 0.5, and half of the slope is lost before the next layer."""
import torch
from torch import nn

model = nn.Sequential(
    nn.Linear(20, 64),
    nn.ReLU(),
    nn.Sigmoid(),  # sick: GD205
    nn.Linear(64, 5),
)
example_inputs = (torch.randn(128, 20), torch.randint(0, 5, (128,)))
loss_fn = nn.CrossEntropyLoss()
