"""view is no transpose: it deals the features of one sample out to others."""
import torch
from torch import nn


class FeatureMixer(nn.Module):
    def __init__(self, batch=64, features=20):
        super().__init__()
        self.batch, self.features = batch, features
        self.across = nn.Linear(batch, batch)
        self.head = nn.Linear(features, 5)

    def forward(self, x):
        x = self.across(x.view(self.features, self.batch))  # sick: GD306 info
        return self.head(torch.relu(x).t())


example_inputs = (torch.randn(64, 20), torch.randint(0, 5, (64,)))
loss_fn = nn.CrossEntropyLoss()
