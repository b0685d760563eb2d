"""One layer of an else sound net starts near zero and takes nearly all of the gradient away."""
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, depth=8, width=64):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))  # sick: GD304
        self.head = nn.Linear(width, 10)
        for layer in [*self.layers, self.head]:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.layers[4].weight, std=1e-4)

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


example_inputs = (torch.randn(128, 64), torch.randint(0, 10, (128,)))
loss_fn = nn.CrossEntropyLoss()
