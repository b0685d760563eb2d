"""The constructor ends with the initialisation."""
import torch
from torch import nn


class DeepNet(nn.Module):
    def __init__(self, depth=16, width=64):
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.output = nn.Linear(width, 10)
        self._init_weights()

    def _init_weights(self):
        for layer in self.hidden:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x):
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.output(x)


example_inputs = (torch.randn(128, 64), torch.randint(0, 10, (128,)))
loss_fn = nn.CrossEntropyLoss()
