"""The careful start of the last layer is overwritten by the general one that follows it."""
import torch
from torch import nn


class PolicyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.action = nn.Linear(64, 4)
        nn.init.orthogonal_(self.action.weight, gain=0.01)
        for layer in [*self.body[::2], self.action]:
            nn.init.orthogonal_(layer.weight)  # sick: GD106 info
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        return self.action(self.body(x))


example_inputs = torch.randn(128, 8)
