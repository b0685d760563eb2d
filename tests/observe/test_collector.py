"""What is kept of a tensor against slow, obvious oracles, for every layout in memory."""
import math

import pytest
import torch

from gradcheck_doctor.observe.collector import Collector, plan_of
from gradcheck_doctor.observe.units import UnitActivity

LAYOUTS = {
    "small": lambda: torch.randn(7, 5),
    "scalar": lambda: torch.randn(()),
    "vector": lambda: torch.randn(5000),
    "matrix": lambda: torch.randn(300, 70),
    "wide": lambda: torch.randn(2, 9001),
    "images": lambda: torch.randn(9, 6, 17, 19),
    "channels last": lambda: torch.randn(9, 6, 17, 19).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(300, 70).T,
    "slice": lambda: torch.randn(300, 90)[:, 5:60],
    "offset": lambda: torch.randn(400, 70)[100:],
    "time first": lambda: torch.randn(12, 33, 50).transpose(0, 1),
    "expanded": lambda: torch.randn(1, 70).expand(300, 70),
    "double": lambda: torch.randn(300, 70, dtype=torch.float64),
    "half": lambda: torch.randn(300, 70).half(),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_norm_and_extremes_are_exact_and_the_sample_is_close(name):
    torch.manual_seed(0)
    value = LAYOUTS[name]() + 0.5
    collector = Collector(1024)
    seen = []
    for _ in range(5):
        collector.put(value)
        seen += collector.finish()
    for summary in seen:
        assert summary.count == value.numel() and summary.sampled == (value.numel() > 1024)
        assert summary.norm == pytest.approx(value.double().norm().item(), rel=1e-3)
        assert value.min() <= summary.minimum <= summary.maximum <= value.max()
        if not summary.sampled or value.dtype == torch.float16:
            assert (summary.minimum, summary.maximum) == (value.min().item(), value.max().item())
        assert summary.rms == pytest.approx(value.double().square().mean().sqrt().item(), rel=1e-3)
    spread = value.double().std(unbiased=False).item()
    assert sum(s.mean for s in seen) / 5 == pytest.approx(value.double().mean().item(), abs=0.2)
    assert sum(s.std for s in seen) / 5 == pytest.approx(spread, rel=0.2)


def test_a_whole_tensor_has_exact_statistics():
    value = torch.relu(torch.randn(16, 12))
    collector = Collector()
    collector.put(value)
    [summary] = collector.finish()
    assert summary.std == pytest.approx(value.std(unbiased=False).item(), rel=1e-4)
    assert summary.zero_fraction == pytest.approx((value == 0).float().mean().item())
    assert summary.sample_std == pytest.approx(value.var(0, unbiased=False).mean().sqrt().item(), rel=1e-4)


def test_the_sample_stays_inside_its_tensor_and_turns():
    """At every rotation all elements of a sample are in the tensor and different, and rotations differ; a batch's samples stay apart."""
    for shape in [(300, 70), (2, 9001), (9, 6, 17, 19), (5000,), (129, 513), (4, 64, 384), (64, 1025), (1, 1100), (16, 80, 13), (1200, 1), (70, 15)]:
        value = torch.arange(math.prod(shape)).view(shape)
        plan, features = plan_of(shape, 1024), math.prod(shape[1:])
        layout = Collector(1024).layout(value)
        seen = set()
        for turn in range(200):
            layout.to(turn)
            sample = torch.take(value, layout.index)
            assert sample.shape == (plan.rows, plan.columns) and len(sample.unique()) == sample.numel() <= 1024
            assert ((sample // features) == (sample[:, :1] // features)).all()
            seen.update(sample.flatten().tolist())
        assert len(seen) > 1.5 * sample.numel() or value.numel() < 2048


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_bad_element_is_seen_wherever_it_is(bad, dtype):
    value = torch.randn(300, 70, dtype=dtype)
    value[123, 45] = bad
    collector = Collector()
    collector.put(value)
    assert not collector.finish()[0].finite


def test_overflow_of_the_square_is_not_taken_for_an_infinity():
    collector = Collector()
    value = torch.zeros(300, 70)
    value[123, 45] = 1e25
    collector.put(value)
    [summary] = collector.finish()
    assert summary.finite and summary.absmax == pytest.approx(1e25)


@pytest.mark.parametrize(("shape", "axis"), [((32, 10), 1), ((8, 10, 5, 5), 1), ((8, 6, 10), -1), ((8, 10, 7), 1)])
def test_activity_of_units_is_exact(shape, axis):
    torch.manual_seed(0)
    value = torch.randn(shape).movedim(axis, 0).contiguous()
    value[2], value[7] = 0.0, value[7].abs() + 1
    value = torch.relu(value).movedim(0, axis)
    collector, activity = Collector(), UnitActivity("relu", axis)
    activity.add(value, True, collector)
    activity.add(value, False, collector)
    collector.finish()
    total, first, last = activity.result()
    assert (total.dead, total.always_on, total.indices, total.units) == (1, 1, (2,), 10)
    assert total.samples == 2 * value.numel() // 10 and first.samples == value.numel() // 10 and last.dead == 1


def test_saturation_is_counted_over_all_samples():
    value = torch.zeros(40, 3)
    value[:, 1], value[:39, 2] = 0.999, -0.999
    collector, activity = Collector(), UnitActivity("tanh", 1)
    activity.add(value, True, collector)
    collector.finish()
    assert activity.result()[0].indices == (1, 2)


def test_a_device_is_read_once_a_step(monkeypatch):
    """Where reading a number waits for the device, everything of a step comes in one copy, and the figures are the same."""
    from gradcheck_doctor.observe import collector as module
    values = [torch.randn(300, 70), torch.randn(4, 3), torch.randn(64, 8, 9, 9)]
    near = Collector()
    for value in values:
        near.put(value)
    expected = near.finish()
    copies = []
    whole = torch.Tensor.cpu
    monkeypatch.setattr(module, "at_hand", lambda value: False)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: copies.append(tensor.numel()) or whole(tensor))
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: pytest.fail("waited for one number"))
    far, activity = Collector(), UnitActivity("relu", 1)
    for value in values:
        far.put(value)
    activity.add(values[2], True, far)
    seen = far.finish()
    assert len(copies) == 1 and copies[0] < 100
    assert [s.norm for s in seen] == pytest.approx([s.norm for s in expected], rel=1e-5) and activity.result is not None
    assert seen[0].maximum == values[0].max() and activity.result()[0].samples == 64 * 81


def test_buffers_of_shapes_that_never_come_again_are_let_go():
    collector = Collector()
    for length in range(1, 600):
        collector.put(torch.ones(3, length))
        assert collector.finish()[0].rms == pytest.approx(1.0)
    assert len(collector._groups) <= 257


@pytest.mark.parametrize(("shape", "axis", "place"), [((16, 4, 20, 20), 1, (slice(None), 0, 9, 9)), ((8, 100, 4), -1, (slice(None), 37, 0)),
                                                      ((600, 4), -1, (slice(3, None, 4), 0))])
def test_a_unit_at_work_in_one_place_only_is_seen_there_in_time(shape, axis, place):
    collector, activity = Collector(), UnitActivity("relu", axis)
    value = torch.zeros(shape)
    value[place] = 1.0
    for _ in range(50):
        activity.add(value, False, collector, exact=False)
        collector.finish()
    total, *_ = activity.result()
    assert (total.units, total.dead) == (4, 3)
