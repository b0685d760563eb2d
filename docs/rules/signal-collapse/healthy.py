"""34 ReLU layers with He weights: what tells two inputs apart arrives at the output."""
import torch
from torch import nn


class DeepNet(nn.Module):
    def __init__(self, depth=34, width=64):
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.output = nn.Linear(width, 10)
        for layer in self.hidden:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")

    def forward(self, x):
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.output(x)


example_inputs = (torch.randn(128, 64), torch.randint(0, 10, (128,)))
loss_fn = nn.CrossEntropyLoss()
