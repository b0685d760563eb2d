"""A deep ReLU net with PyTorch's default initialisation: signal and gradient fall by a factor of 0.4 at every layer."""
import torch
from torch import nn


def build_model(depth=16, width=64):
    layers = [nn.Linear(32, width), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU()]  # sick: GD102
    return nn.Sequential(*layers, nn.Linear(width, 10))


example_inputs = (torch.randn(128, 32), torch.randint(0, 10, (128,)))
loss_fn = nn.CrossEntropyLoss()
