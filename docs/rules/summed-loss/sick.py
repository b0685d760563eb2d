"""The loss is summed over the batch, so the gradient grows with the batch size."""
import torch
from torch import nn

model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))
example_inputs = (torch.randn(128, 20), torch.randint(0, 5, (128,)))
loss_fn = nn.CrossEntropyLoss(reduction="sum")  # sick: GD606 info
