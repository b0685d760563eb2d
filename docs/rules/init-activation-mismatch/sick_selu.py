"""A self-normalising net, initialised with calculate_gain('selu') = 3/4: the signal fades, for SELU needs a gain of 1."""
import torch
from torch import nn


class SelfNormalising(nn.Module):
    def __init__(self, depth=12, width=100):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.output = nn.Linear(width, 5)
        for layer in [*self.layers, self.output]:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="selu")  # sick: GD102
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        for layer in self.layers:
            x = torch.selu(layer(x))
        return self.output(x)


example_inputs = (torch.randn(128, 100), torch.randint(0, 5, (128,)))
loss_fn = nn.CrossEntropyLoss()
