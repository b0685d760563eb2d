"""House prices around 300 with an output that starts at 0: the first loss is far above that of guessing the mean."""
import torch
from torch import nn

prices = 300 + 20 * torch.randn(256, 1)
model = nn.Sequential(
    nn.Linear(8, 32),
    nn.ReLU(),
    nn.Linear(32, 1),
)

example_inputs = (torch.randn(256, 8), prices)
loss_fn = nn.MSELoss()  # sick: GD604
