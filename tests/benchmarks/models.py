"""The models of the benchmark, written out here so that no download and no model zoo is needed."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Workload:
    """A model, its data and the loop's choices; `batches(seed)` yields the same data for the same seed."""

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    size: str

    def batches(self, seed: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
                batch = self.batch()
            yield batch


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18)."""

    expansion = 1

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = _shortcut(before, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut (ResNet-50)."""

    expansion = 4

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = _shortcut(before, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


def _shortcut(before: int, after: int, stride: int) -> nn.Module:
    if before == after and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


class ResNet(nn.Module):
    def __init__(self, block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, int, int, int], classes: int = 100) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
        before, blocks = 64, []
        for stage, depth in enumerate(depths):
            width = 64 * 2**stage
            for index in range(depth):
                blocks.append(block(before, width, 2 if stage and not index else 1))
                before = width * block.expansion
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln1, self.attention, self.ln2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.fc1, self.act, self.fc2, self.dropout = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.ln1(x)))
        return x + self.dropout(self.fc2(self.act(self.fc1(self.ln2(x)))))


class GPT(nn.Module):
    """A decoder in the style of GPT-2: learned positions, pre-norm, tied nothing."""

    def __init__(self, layers: int = 6, width: int = 384, heads: int = 6, vocabulary: int = 1024, length: int = 128) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, 0.0, 0.02)
        for block in self.blocks:
            nn.init.normal_(block.fc2.weight, 0.0, 0.02 / math.sqrt(2 * layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.token(x) + self.position(torch.arange(x.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class LanguageLSTM(nn.Module):
    def __init__(self, layers: int = 2, width: int = 256, vocabulary: int = 1024) -> None:
        super().__init__()
        self.token, self.lstm, self.head = nn.Embedding(vocabulary, width), nn.LSTM(width, width, layers, batch_first=True), nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.token(x))[0])


def mlp(depth: int = 8, width: int = 512) -> nn.Module:
    hidden = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


def _classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def _language(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def _huggingface(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return model(x, labels=y).loss


def gpt2(**config: Any) -> nn.Module:
    """GPT-2 of the transformers package, random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(**config))


def _tokens(batch: int, length: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    x = torch.randint(0, vocabulary, (batch, length + 1))
    return x[:, :-1].contiguous(), x[:, 1:].contiguous()


def _images(batch: int, side: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, side, side), torch.randint(0, 100, (batch,))


WORKLOADS = {w.name: w for w in (
    Workload("mlp", mlp, lambda: (torch.randn(128, 512), torch.randint(0, 10, (128,))), _classify, "MLP 8x512, batch 128"),
    Workload("cnn", lambda: ResNet(BasicBlock, (2, 2, 2, 2)), lambda: _images(16, 64), _classify, "ResNet-18-like, batch 16 of 3x64x64"),
    Workload("gpt", GPT, lambda: _tokens(4, 64, 1024), _language, "GPT 6x384, batch 4 of 64 tokens"),
    Workload("lstm", LanguageLSTM, lambda: _tokens(16, 64, 1024), _language, "LSTM 2x256, batch 16 of 64 tokens"),
)}
AUDITED = {w.name: w for w in (
    Workload("resnet50", lambda: ResNet(Bottleneck, (3, 4, 6, 3)), lambda: _images(16, 128), _classify, "ResNet-50-like, batch 16 of 3x128x128"),
    Workload("gpt2", lambda: gpt2(n_layer=12, n_embd=768, n_head=12), lambda: _tokens(4, 128, 50257)[:1] * 2, _huggingface,
             "transformers GPT-2, 12x768, batch 4 of 128 tokens"),
)}
