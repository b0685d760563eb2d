"""SELU with PyTorch's default weights and plain Dropout: nothing brings its activations back to standard deviation 1."""
import torch
from torch import nn


class SelfNormalising(nn.Module):
    def __init__(self, depth=8, width=100):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.dropout = nn.Dropout(0.1)
        self.output = nn.Linear(width, 5)

    def forward(self, x):
        for layer in self.layers:
            x = self.dropout(torch.selu(layer(x)))  # sick: GD211
        return self.output(x)


example_inputs = (torch.randn(256, 100), torch.randint(0, 5, (256,)))
loss_fn = nn.CrossEntropyLoss()
