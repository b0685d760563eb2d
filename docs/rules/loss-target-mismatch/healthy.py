"""Cross-entropy on the class numbers."""
import torch
import torch.nn.functional as F
from torch import nn

model = nn.Sequential(
    nn.Linear(20, 64),
    nn.ReLU(),
    nn.Linear(64, 5),
)


def loss_fn(output, labels):
    return F.cross_entropy(output, labels)


example_inputs = (torch.randn(128, 20), torch.randint(0, 5, (128,)))
