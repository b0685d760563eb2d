"""The tokens were forgotten: only the positions reach the head, so every sentence gets the same scores."""
import torch
from torch import nn


class SentenceClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(1000, 32)
        self.positions = nn.Embedding(64, 32)
        self.head = nn.Linear(32, 5)  # sick: GD608

    def forward(self, tokens):
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        x = self.positions(positions)
        return self.head(x.mean(dim=1))


example_inputs = (torch.randint(0, 1000, (64, 16)), torch.randint(0, 5, (64,)))
loss_fn = nn.CrossEntropyLoss()
