"""What an optimizer's step did to the parameters, against the obvious oracle."""
from bisect import bisect_right

import pytest
import torch
from torch import nn

from gradcheck_doctor.observe.updates import Updates, add_rows, gradient_norms
from gradcheck_doctor.observe.updates import rows as no_rows


def seen(updates, step=0, norms=None, scale=1.0):
    """The rows that `updates` gives for one step, by id of the parameter."""
    rows = {}
    add_rows(rows, step, norms or {}, scale, updates.finish())
    return {key: row[0] for key, row in rows.items()}


def parameters():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape, dtype in
            [((300, 70), torch.float32), ((5,), torch.float32), ((3, 4), torch.float64), ((40, 50), torch.bfloat16), ((), torch.float32)]]


def test_update_ratio_of_several_steps_agrees_with_whole_tensors():
    held, updates = parameters(), Updates()
    for step in range(3):
        old = [p.detach().clone() for p in held]
        updates.before(held)
        for p in held:
            p.grad = torch.randn(p.shape).to(p.dtype)
            p.data.add_(torch.randn(p.shape).to(p.dtype), alpha=0.1)
        rows = seen(updates, step, gradient_norms(held), scale=2.0)
        for p, before in zip(held, old, strict=True):
            change, size = (p.detach() - before).double().square().mean().sqrt(), before.double().square().mean().sqrt()
            row = rows[id(p)]
            assert row.step == step and row.update_ratio == pytest.approx((change / size).item(), rel=1e-4 if p.numel() <= 1024 else 0.15)
            assert row.grad_norm == pytest.approx(p.grad.double().norm().item() / 2, rel=1e-2)
            assert row.weight_norm == pytest.approx(before.double().norm().item(), rel=0.1)


def test_rounded_away_updates_are_counted():
    weight = nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
    updates = Updates()
    updates.before([weight])
    weight.grad = torch.ones_like(weight)
    weight.grad[:500] = 0
    weight.data[500:750] += 0.5
    assert seen(updates)[id(weight)].lost == pytest.approx(0.5)


def test_without_a_gradient_nothing_was_wanted_and_a_stale_row_does_not_stay():
    weight, updates = nn.Parameter(torch.ones(10, dtype=torch.bfloat16)), Updates()
    for gradient in (torch.ones_like(weight), None):
        updates.before([weight])
        weight.grad = gradient
        row = seen(updates)[id(weight)]
        assert row.update_ratio == 0.0 and row.lost == (1.0 if gradient is not None else None)


def test_values_that_move_to_other_memory_are_followed():
    weight, updates = nn.Parameter(torch.ones(2000)), Updates()
    for _ in range(2):
        updates.before([weight])
        weight.data = weight.data * 2
        assert seen(updates)[id(weight)].update_ratio == pytest.approx(1.0)


def test_rows_are_made_when_they_are_asked_for():
    rows = no_rows()
    for step in range(5):
        rows.add(step, 2.0 * step, 2.0, ([1.0, 0.1], 4) if step % 2 else None)
    assert [row.step for row in rows] == [0, 1, 2, 3, 4] and [row.grad_norm for row in rows[3:]] == [3.0, 4.0] and rows[-1].update_ratio is None
    assert rows[1].update_ratio == pytest.approx(0.1) and rows[1].weight_norm == 2.0 and rows[1] is rows[1]
    assert [row.step for row in reversed(rows)] == [4, 3, 2, 1, 0] and rows[0] in rows and len(rows) == 5
    assert [row.step for row in rows[bisect_right(rows, 1, key=lambda row: row.step):]] == [2, 3, 4]
