"""The output's bias starts at the mean of the prices."""
import torch
from torch import nn

prices = 300 + 20 * torch.randn(256, 1)
model = nn.Sequential(
    nn.Linear(8, 32),
    nn.ReLU(),
    nn.Linear(32, 1),
)
nn.init.constant_(model[-1].bias, prices.mean().item())

example_inputs = (torch.randn(256, 8), prices)
loss_fn = nn.MSELoss()
