"""A small number under the root keeps its slope finite."""
import torch
from torch import nn


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, a, b):
        difference = self.embed(a) - self.embed(b)
        return torch.sqrt((difference**2).sum(dim=1) + 1e-8)


a, b = torch.randn(64, 16), torch.randn(64, 16)
b[:8] = a[:8]
example_inputs = ((a, b), (torch.arange(64) >= 8).float())
loss_fn = nn.MSELoss()
