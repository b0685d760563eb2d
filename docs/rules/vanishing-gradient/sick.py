"""Twelve tanh layers with small fixed weights: the first layer gets a millionth of the last one's gradient."""
import torch
from torch import nn


def build_model(depth=12, width=64):
    layers = [nn.Linear(32, width), nn.Tanh()]  # sick: GD301
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.03)
    return model


example_inputs = (torch.randn(128, 32), torch.randint(0, 10, (128,)))
loss_fn = nn.CrossEntropyLoss()
