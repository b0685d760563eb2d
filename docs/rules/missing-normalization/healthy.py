"""Batch normalisation behind each convolution keeps signal and gradient level, whatever the weights do."""
import torch
from torch import nn


def block(channels_in, channels_out):
    return [nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]


model = nn.Sequential(
    *block(3, 16),
    *[layer for _ in range(13) for layer in block(16, 16)],
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(16, 10),
)
example_inputs = (torch.randn(32, 3, 16, 16), torch.randint(0, 10, (32,)))
loss_fn = nn.CrossEntropyLoss()
