"""A standard deviation for each layer, from its fan-in."""
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, depth=8, width=128):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 10)
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


example_inputs = (torch.randn(128, 128), torch.randint(0, 10, (128,)))
loss_fn = nn.CrossEntropyLoss()
