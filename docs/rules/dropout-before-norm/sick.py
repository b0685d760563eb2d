"""Dropout in front of batch normalisation: the variance it learns is not the one it meets in evaluation."""
import torch
from torch import nn

model = nn.Sequential(
    nn.Linear(16, 64, bias=False),
    nn.Dropout(0.3),  # sick: GD504 info
    nn.BatchNorm1d(64),
    nn.ReLU(),
    nn.Linear(64, 2),
)
example_inputs = (torch.randn(128, 16), torch.randint(0, 2, (128,)))
loss_fn = nn.CrossEntropyLoss()
