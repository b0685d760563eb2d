"""Statistics of many tensors at once: each gives a small sample and two exact reductions, everything else is computed together at the end.

No tensor outlives its step, and one copy brings all numbers to the host.
"""
from __future__ import annotations

import math

import torch
from torch import Tensor

from gradcheck_doctor.records.summaries import Summary

ROWS = 64          # samples (axis 0) looked at for statistics that need them, at most


def sub_matrix(value: Tensor, limit: int, rotation: int = 0) -> Tensor:
    """At most `limit` elements of `value` as a matrix (samples, features): evenly spaced, offset turned by `rotation`.

    Axis 0 is the batch for every layout but the time-first one, where it is time.
    """
    if value.dim() == 0:
        return value.reshape(1, 1)
    if value.dim() == 1:
        value = value.unsqueeze(1)
    samples = value.shape[0]
    if value.numel() > limit and samples > ROWS:
        step = samples // ROWS
        value = value[rotation % step::step][:ROWS]
    matrix = value.reshape(value.shape[0], -1)
    wanted = max(1, limit // max(1, matrix.shape[0]))
    features = matrix.shape[1]
    if features > wanted:
        step = (features // wanted) | 1
        while features // step < wanted and step > 1:
            step -= 2
        step = max(step, 1)
        matrix = matrix[:, rotation % step::step][:, :wanted]
    return matrix


class Collector:
    """Gathers tensors during one step; `finish` returns their summaries in order of `put`."""

    def __init__(self, limit: int = 1024) -> None:
        self.limit = limit
        self.rotation = 0
        self._samples: list[Tensor] = []
        self._exact: list[Tensor] = []
        self._counts: list[int] = []

    def put(self, value: Tensor) -> int:
        """Take statistics of `value` (any floating dtype, strided); returns the place of its summary."""
        value = value.detach()
        sample = sub_matrix(value, self.limit, self.rotation).float()
        whole = sample.numel() == value.numel()
        self._samples.append(sample.clone() if sample.data_ptr() == value.data_ptr() else sample)
        source = sample if whole else value
        if value.numel():
            low, high = torch.aminmax(source)
            norm = torch.linalg.vector_norm(source, dtype=torch.float32)
            self._exact.append(torch.stack([low.float(), high.float(), norm]))
        else:
            self._exact.append(torch.zeros(3, device=value.device))
        self._counts.append(value.numel())
        return len(self._counts) - 1

    def finish(self) -> list[Summary]:
        """Summaries of everything put since the last call; forgets the tensors."""
        if not self._counts:
            return []
        rows = self._grouped()
        exact = torch.stack([e.cpu() for e in self._exact]).double().tolist()
        result = [_summary(count, statistics, numbers, sample.numel() < count) for count, statistics, numbers, sample in
                  zip(self._counts, rows, exact, self._samples, strict=True)]
        self._samples, self._exact, self._counts = [], [], []
        self.rotation += 1
        return result

    def _grouped(self) -> list[list[float]]:
        """mean, mean square, variance, zero share and variance over samples of each sample; one batched reduction a shape."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, sample in enumerate(self._samples):
            groups.setdefault((*sample.shape, sample.device.index or 0), []).append(index)
        result: list[list[float]] = [[] for _ in self._samples]
        for members in groups.values():
            stacked = torch.stack([self._samples[i] for i in members])                    # (tensors, samples, features), float32
            flat = stacked.flatten(1)
            if flat.shape[1] == 0:
                values = [[0.0] * 5 for _ in members]
            else:
                values = _statistics(stacked, flat).tolist()
            for index, row in zip(members, values, strict=True):
                result[index] = row
        return result


def _statistics(stacked: Tensor, flat: Tensor) -> Tensor:
    """Centred sums instead of torch.var, which is many times slower on a CPU."""
    mean = flat.mean(1)
    variance = (flat - mean.unsqueeze(1)).square_().mean(1)
    if stacked.shape[1] > 1:
        between = (stacked - stacked.mean(dim=1, keepdim=True)).square_().flatten(1).mean(1)
    else:
        between = torch.full_like(mean, math.nan)
    zeros = (flat == 0).to(flat.dtype).mean(1)
    return torch.stack([mean, variance + mean.square(), variance, zeros, between], dim=1)


def _summary(count: int, row: list[float], exact: list[float], sampled: bool) -> Summary:
    mean, square, variance, zeros, between = row
    low, high, norm = exact
    finite = math.isfinite(low) and math.isfinite(high)
    if sampled and math.isfinite(norm) and count:
        square = norm * norm / count
    return Summary(count=count, mean=mean, std=math.sqrt(max(variance, 0.0)) if variance == variance else math.nan,
                   rms=math.sqrt(square) if square >= 0 else math.nan, absmax=max(abs(low), abs(high)) if finite else math.inf,
                   norm=norm, zero_fraction=zeros, sample_std=math.sqrt(between) if between >= 0 else math.nan,
                   minimum=low, maximum=high, finite=finite, sampled=sampled)
