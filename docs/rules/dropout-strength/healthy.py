"""Dropout keeps four fifths of the layer."""
import torch
from torch import nn

model = nn.Sequential(
    nn.Linear(20, 64),
    nn.ReLU(),
    nn.Dropout(0.2),
    nn.Linear(64, 5),
)
example_inputs = (torch.randn(128, 20), torch.randint(0, 5, (128,)))
loss_fn = nn.CrossEntropyLoss()
