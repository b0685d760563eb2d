"""Weights drawn from N(0, 1) whatever the width: the first loss is in the thousands."""
import torch
from torch import nn


def init_weights(module):
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight)  # sick: GD103
        nn.init.zeros_(module.bias)


model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
model.apply(init_weights)

example_inputs = (torch.randn(128, 64), torch.randint(0, 10, (128,)))
loss_fn = nn.CrossEntropyLoss()
