"""The convolution leaves the bias to the normalisation."""
import torch
from torch import nn

model = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1, bias=False),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(16, 10),
)
example_inputs = (torch.randn(32, 3, 16, 16), torch.randint(0, 10, (32,)))
loss_fn = nn.CrossEntropyLoss()
