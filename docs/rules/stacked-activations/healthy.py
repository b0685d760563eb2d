"""One activation is enough."""
import torch
from torch import nn

model = nn.Sequential(
    nn.Linear(20, 64),
    nn.ReLU(),
    nn.Linear(64, 5),
)
example_inputs = (torch.randn(128, 20), torch.randint(0, 5, (128,)))
loss_fn = nn.CrossEntropyLoss()
