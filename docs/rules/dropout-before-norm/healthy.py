"""Dropout behind the normalisation."""
import torch
from torch import nn

model = nn.Sequential(
    nn.Linear(16, 64, bias=False),
    nn.BatchNorm1d(64),
    nn.ReLU(),
    nn.Dropout(0.3),
    nn.Linear(64, 2),
)
example_inputs = (torch.randn(128, 16), torch.randint(0, 2, (128,)))
loss_fn = nn.CrossEntropyLoss()
