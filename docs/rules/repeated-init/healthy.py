"""The general initialisation comes first, the exception for the last layer after it."""
import torch
from torch import nn


class PolicyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.action = nn.Linear(64, 4)
        for layer in [*self.body[::2], self.action]:
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.orthogonal_(self.action.weight, gain=0.01)

    def forward(self, x):
        return self.action(self.body(x))


example_inputs = torch.randn(128, 8)
