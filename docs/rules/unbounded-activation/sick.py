"""exp as hidden activation: three layers of it turn moderate inputs into astronomic ones."""
import torch
from torch import nn


class RateNet(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.first = nn.Linear(10, width)
        self.second = nn.Linear(width, width)
        self.third = nn.Linear(width, width)
        self.output = nn.Linear(width, 1)

    def forward(self, x):
        x = torch.exp(self.first(x))  # sick: GD207
        x = torch.exp(self.second(x))
        x = torch.exp(self.third(x))
        return self.output(x)


example_inputs = (torch.randn(128, 10), torch.randn(128, 1))
loss_fn = nn.MSELoss()
