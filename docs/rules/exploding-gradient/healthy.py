"""He initialisation: the gradient is as large at the first layer as at the last."""
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, depth=12, width=256):
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


example_inputs = (torch.randn(128, 256), torch.randint(0, 10, (128,)))
loss_fn = nn.CrossEntropyLoss()
