"""Figures of several ranks become one recording; plain numbers, no process needed."""
import math

import pytest

from gradcheck_doctor.records.ranks import OperationShare, ParameterShare, Share, UnitShare, merge
from gradcheck_doctor.records.recording import Event, Observed, Operation, ParameterRecord, ParameterStep, Recording, StepRecord
from gradcheck_doctor.records.summaries import Summary


def summary(norm, count=4):
    return Summary(count=count, mean=0.0, std=1.0, rms=norm / math.sqrt(count), absmax=norm, norm=norm, zero_fraction=0.0, sample_std=1.0)


RECORD = ParameterRecord("fc.weight", "fc", "weight", (3, 2), 6, True, fan_in=2, mean=1.0, std=0.0)


def row(norm, step=0):
    return ParameterStep(step, norm, update_ratio=0.1, weight_norm=math.sqrt(6.0))


def recording(**more):
    layer = Operation(0, "relu", "activation", "act", "ReLU", observed=(Observed(0, summary(3.0), summary(3.0)), Observed(5, summary(3.0), None)))
    return Recording("run", operations=(layer,), parameters=(RECORD,), parameter_steps={"fc.weight": (row(3.0),)},
                     steps=(StepRecord(0, loss=1.0, grad_norm=3.0),), curve=((0, 1.0),), events=(Event("clip_norm", 0, before=3.0),), total_steps=1, **more)


def share(rank, norm, count=3, copies=1, loss=1.0, **more):
    operations = {("act", "relu", 0): OperationShare({0: (summary(norm), summary(norm))})}
    parameters = {"fc.weight": ParameterShare(RECORD, count, copies, {0: row(norm)})}
    return Share(rank, 1, operations=operations, parameters=parameters, losses={0: loss}, squares={0: norm**2 / copies}, clips=(norm**2 / copies,), **more)


def test_norms_of_shards_are_the_root_of_the_summed_squares():
    whole = merge(recording(), [share(0, 3.0), share(1, 4.0)], 2)
    assert whole.steps[0].grad_norm == whole.parameter_steps["fc.weight"][0].grad_norm == whole.events[0].before == 5.0
    assert whole.operations[0].first.forward.norm == 5.0


def test_replicas_count_once():
    """Hybrid sharding: each shard is on two ranks."""
    whole = merge(recording(), [share(r, 3.0 if r < 2 else 4.0, copies=2) for r in range(4)], 4)
    assert whole.steps[0].grad_norm == whole.parameter_steps["fc.weight"][0].grad_norm == 5.0


def test_weights_update_ratios_and_losses_are_those_of_the_whole():
    whole = merge(recording(), [share(0, 3.0, count=4), share(1, 4.0, count=2, loss=3.0)], 2)
    assert whole.parameter_steps["fc.weight"][0].weight_norm == pytest.approx(math.sqrt(6.0))
    assert whole.parameter_steps["fc.weight"][0].update_ratio == pytest.approx(0.1)
    assert whole.curve == ((0, 2.0),) and whole.steps[0].loss == 2.0


def test_gradients_are_those_of_the_averaged_loss():
    whole = merge(recording(), [share(0, 3.0, averaged=True), share(1, 4.0, averaged=True)], 2)
    assert whole.operations[0].first.gradient.norm == 2.5 and whole.operations[0].first.forward.norm == 5.0


def test_a_missing_rank_leaves_shards_unmeasured_and_is_named():
    """Not measured is not passed, and never the figure of one shard."""
    part = merge(recording(), [share(0, 3.0), share(2, 4.0)], 3)
    assert part.steps[0].grad_norm is None and part.parameter_steps["fc.weight"] == () and part.events[0].before is None
    assert "rank 1" in part.blind_spots[0].reason and part.probe["ranks"] == "2 of 3"


def test_only_steps_that_all_ranks_observed_are_kept():
    assert [o.step for o in merge(recording(), [share(0, 3.0), share(1, 4.0)], 2).operations[0].observed] == [0]


@pytest.mark.parametrize(("saturating", "highs", "field", "expected"), [
    (False, [(0.0, 0.0, 1.0), (0.0, 2.0, 1.0)], "dead", (0,)), (True, [(8.0, 8.0, 1.0), (8.0, 1.0, 0.0)], "saturated", (0,))])
def test_a_unit_is_dead_or_saturated_only_on_all_ranks(saturating, highs, field, expected):
    from dataclasses import replace
    shares = [replace(s, operations={k: replace(o, units=UnitShare(saturating, total=(h, h, 8))) for k, o in s.operations.items()})
              for s, h in zip([share(0, 3.0), share(1, 4.0)], highs, strict=True)]
    from gradcheck_doctor.records.summaries import Units
    start = recording()
    units = merge(replace(start, operations=(replace(start.operations[0], units=Units(3, 8)),)), shares, 2).operations[0].units
    assert units.indices == expected and getattr(units, field) == 1 and units.samples == 16
