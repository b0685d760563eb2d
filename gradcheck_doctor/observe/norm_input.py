"""What enters the first batch normalisation of a model that was trained before, against the statistics it brought along."""
from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from gradcheck_doctor.observe.graph import Node

FEWEST = 8             # samples: fewer say little about the data


def note_first_norm(node: Node, value: object) -> None:
    """Put `input_shift` and `input_log_scale` among the attributes of the batch normalisation `node`, which was just applied to `value`.

    Medians over the channels: |batch mean - running mean| in running standard deviations, and |log(batch std / running std)|. Nothing where the
    running statistics were still those of a new layer.
    """
    module = node.module
    if not isinstance(module, _BatchNorm) or not isinstance(value, Tensor) or module.running_mean is None or module.running_var is None:
        return
    if value.dim() < 2 or value.shape[0] < FEWEST or not value.is_floating_point() or hasattr(value, "to_local"):
        return
    with torch.no_grad():
        channels = value.detach().float().movedim(1, 0).flatten(1)
        mean, variance = channels.mean(1), channels.var(1, unbiased=True)
        old_mean, old_variance = module.running_mean.float(), module.running_var.float()
        if module.training:                                         # the call has mixed this batch in already
            tracked = int(module.num_batches_tracked) if module.num_batches_tracked is not None else 0
            share = module.momentum if module.momentum is not None else 1.0 / max(tracked, 1)
            if share >= 1.0:
                return
            old_mean, old_variance = ((old - share * new) / (1.0 - share) for old, new in ((old_mean, mean), (old_variance, variance)))
        if old_mean.abs().max() < 1e-3 and (old_variance - 1.0).abs().max() < 1e-3:
            return
        alive = old_variance > 1e-5 * old_variance.max()
        spread = old_variance[alive].clamp_min(1e-20).sqrt()
        shift = ((mean[alive] - old_mean[alive]).abs() / spread).median().item()
        scale = (variance[alive].clamp_min(1e-20).sqrt() / spread).log().abs().median().item()
    if math.isfinite(shift) and math.isfinite(scale):
        node.attributes |= {"input_shift": shift, "input_log_scale": scale, "statistics_move": module.training}
