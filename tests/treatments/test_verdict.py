"""What counts as proof: the loss against the untreated control's."""
import math
from dataclasses import replace

import pytest

from gradcheck_doctor.records.findings import Finding, ReportData
from gradcheck_doctor.verify import beaten, judge, verdict


def judged(first, last, *findings):
    steps = [first + (last - first) * min(1.0, k / 60) for k in range(101)]
    return judge(ReportData("t.py", "run", {}, {}, findings, curves={"loss": tuple(enumerate(steps, 1))}))


SICK = Finding("GD103", "init-scale", "error", "m")


@pytest.mark.parametrize(("treatment", "last", "status"), [
    ("initialise", 0.001, "improved"), ("initialise", 0.03, "improved"), ("initialise", 0.2, "no-effect"), ("learning-rate", 0.03, "no-effect"),
    ("learning-rate", 0.001, "improved")])
def test_a_new_start_has_to_be_no_worse_and_everything_else_better(treatment, last, status):
    """Oversized weights learn their data by heart (14 to 0.007); losses of 0.007 and 0.03 tell nothing when training begins at 2.3."""
    before, after = judged(14.0, 0.007, SICK), judged(2.3, last)
    assert verdict(SICK, treatment, before, after, run=True).status == status


def test_a_new_start_that_leaves_the_finding_is_none():
    assert verdict(SICK, "initialise", judged(14.0, 0.007, SICK), judged(2.3, 0.03, SICK), run=True).status == "no-effect"
    assert verdict(SICK, "initialise", judged(14.0, 0.007), judged(2.3, 0.03), run=True).status == "no-effect"


@pytest.mark.parametrize(("last", "after", "status"), [(0.02, (), "improved"), (0.03, (), "improved"), (0.2, (), "no-effect"), (0.02, ("warning",), "no-effect")])
def test_what_protects_something_else_leaves_the_loss_as_it_is(last, after, status):
    """Frozen statistics that move spoil another use of the backbone: the loss does not tell, the finding has to be gone, even as a warning."""
    moving = Finding("GD505", "frozen-batchnorm-drift", "error", "m")
    left = tuple(Finding("GD505", "frozen-batchnorm-drift", severity, "m") for severity in after)
    before, seen = judged(2.3, 0.019, moving), judged(2.3, last, *left)
    assert verdict(moving, "eval-batchnorm", before, seen, run=True).status == status
    assert not beaten("eval-batchnorm", before, seen, [judged(2.3, 0.001)] * 3) and beaten("initialise", before, judged(2.3, 0.018), [judged(2.3, 0.001)] * 3)


def test_a_loss_below_0_is_no_gain_beside_one_that_is_minimised():
    """With the minus sign left in, every treatment that speeds training up drives the loss further down."""
    raised = Finding("GD706", "loss-divergence", "error", "m")
    before, after, faster = judged(-3.0, -130.0, raised), judged(3.0, 0.3), [judged(-3.0, -9000.0, raised)] * 3
    assert verdict(raised, "minimise-loss", before, after, run=True).status == "improved" and not beaten("minimise-loss", before, after, faster)
    assert beaten("minimise-loss", before, judged(3.0, 2.0), [judged(3.0, 0.1)] * 3)


@pytest.mark.parametrize(("treatment", "before", "after", "said"), [
    ("learning-rate", 2.3, 2.28, "the loss ends at 2.28, without the change at 2.3; needed: below 2.254"),
    ("eval-batchnorm", 2.3, 2.4, "the loss ends at 2.4, without the change at 2.3; needed: at most 2.346"),
    ("learning-rate", float("inf"), float("inf"), "the loss ends at inf, without the change at inf"),
    ("replace-loss", 2.0, 1.9, "17% of the first loss is gone, without the change 13%; needed: more than 30%")])
def test_a_fix_that_is_not_kept_says_what_was_needed(treatment, before, after, said):
    assert verdict(SICK, treatment, judged(2.3, before, SICK), judged(2.3, after), run=True).reason == said


def test_a_short_run_is_said_to_be_short():
    few = judge(ReportData("t.py", "run", {}, {}, curves={"loss": ((1, 2.3), (2, 2.3), (3, 2.28))}))
    assert verdict(SICK, "learning-rate", judged(2.3, 2.3, SICK), few, run=True).reason.endswith("3 steps show little, a longer run may show more")


@pytest.mark.parametrize(("first", "last", "above", "status"), [(2.3, 0.5, 0.0, "improved"), (2.3, 2.2, 0.0, "no-effect"), (72.0, 20.0, 50.0, "no-effect"),
                                                               (72.0, 1.0, 50.0, "improved")])
def test_a_control_that_ended_in_no_number_is_not_beaten_by_any_number(first, last, above, status):
    """A rate ten thousand times smaller leaves the loss finite, and the model where it was."""
    broken = Finding("GD803", "nonfinite-loss", "error", "m")
    before, after = judged(first, math.nan, broken), judged(first, last)
    after = judge(replace(after.report, readings={"initial-loss": above}))
    assert verdict(broken, "learning-rate", before, after, run=True).status == status
