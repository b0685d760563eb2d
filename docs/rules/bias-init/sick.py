"""Biases of 10 keep every ReLU open: the first layer is linear, whatever the input."""
import torch
from torch import nn


class Regressor(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(16, 64)
        self.fc2 = nn.Linear(64, 1)
        nn.init.constant_(self.fc1.bias, 10.0)  # sick: GD104

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


example_inputs = (torch.randn(128, 16), torch.randn(128, 1))
loss_fn = nn.MSELoss()
