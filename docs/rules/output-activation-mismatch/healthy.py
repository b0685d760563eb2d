"""A regression ends in a linear layer."""
import torch
from torch import nn

model = nn.Sequential(
    nn.Linear(20, 64),
    nn.ReLU(),
    nn.Linear(64, 1),
)
example_inputs = (torch.randn(128, 20), torch.randn(128, 1))
loss_fn = nn.MSELoss()
