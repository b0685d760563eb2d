"""Clipping is seen with its threshold and the norm before it; measuring the norm by a clip at infinity is no clipping."""
import math

import pytest
import torch
from torch import nn

import gradcheck_doctor as doctor


@pytest.mark.parametrize(("threshold", "seen"), [(0.01, [0.01] * 3), (math.inf, [])])
def test_clipping_is_seen_unless_it_is_at_infinity(threshold, seen):
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms = []
    with doctor.watch(model, optimizer, every=1) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), threshold).item())
            optimizer.step()
    recording = watch.report().recording
    clips = recording.events_of("clip_norm")
    assert [c.value for c in clips] == seen
    assert [s.grad_norm for s in recording.steps] == pytest.approx(norms, rel=1e-4)
    assert [c.before for c in clips] == pytest.approx(norms[: len(clips)], rel=1e-4)
