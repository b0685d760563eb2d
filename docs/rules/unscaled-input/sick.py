"""Age, income and rooms as they come: the income, in the tens of thousands, drowns everything else."""
import torch
from torch import nn

age = 20 + 50 * torch.rand(256)
income = 20_000 + 60_000 * torch.rand(256)
rooms = torch.randint(1, 7, (256,)).float()

model = nn.Sequential(
    nn.Linear(3, 32),  # sick: GD507
    nn.ReLU(),
    nn.Linear(32, 1),
)
example_inputs = (torch.stack([age, income, rooms], dim=1), torch.randn(256, 1))
loss_fn = nn.MSELoss()
