"""Six sigmoid layers: even with the right initialisation a quarter of the gradient at most passes each of them."""
import torch
from torch import nn


def build_model(depth=6, width=64):
    layers = []
    for i in range(depth):
        layers += [nn.Linear(32 if i == 0 else width, width), nn.Sigmoid()]  # sick: GD203
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    for layer in model[::2]:
        nn.init.xavier_normal_(layer.weight)
    return model


example_inputs = (torch.randn(128, 32), torch.randint(0, 10, (128,)))
loss_fn = nn.CrossEntropyLoss()
