"""LayerNorm normalises each sample by itself, so the size of the batch does not matter."""
import torch
from torch import nn

model = nn.Sequential(
    nn.Linear(16, 32),
    nn.LayerNorm(32),
    nn.ReLU(),
    nn.Linear(32, 2),
)
train_loader = torch.utils.data.DataLoader(
    torch.utils.data.TensorDataset(torch.randn(64, 16), torch.randint(0, 2, (64,))), batch_size=4)
loss_fn = nn.CrossEntropyLoss()
