"""A binary code in the middle of an autoencoder: round has slope 0, so the encoder never learns."""
import torch
from torch import nn


class BinaryAutoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 64))

    def forward(self, x):
        code = torch.sigmoid(self.encoder(x))
        code = torch.round(code)  # sick: GD303
        return self.decoder(code)


example_inputs = torch.randn(128, 64)
