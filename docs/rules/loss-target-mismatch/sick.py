"""A squared error on one-hot labels: its gradient is smallest where the prediction is most wrong."""
import torch
import torch.nn.functional as F
from torch import nn

model = nn.Sequential(
    nn.Linear(20, 64),
    nn.ReLU(),
    nn.Linear(64, 5),
    nn.Sigmoid(),
)


def loss_fn(output, labels):
    return F.mse_loss(output, F.one_hot(labels, 5).float())  # sick: GD605


example_inputs = (torch.randn(128, 20), torch.randint(0, 5, (128,)))
