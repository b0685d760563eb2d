"""Ways through a recording, against the slow and obvious."""
import random

import pytest

from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.records.ways import before, behind, is_output


def recording(producers, categories=None):
    categories = categories or ["other"] * len(producers)
    return Recording("run", operations=tuple(Operation(i, "op", c, "", "", producers=tuple(p)) for i, (p, c) in enumerate(zip(producers, categories, strict=True))))


def drawn(seed):
    rng = random.Random(seed)
    size = rng.randrange(1, 12)
    return recording([rng.sample(range(i), rng.randrange(0, min(i, 3) + 1)) for i in range(size)], [rng.choice(["layer", "shape", "other"]) for _ in range(size)])


def slow(of, starts, through):
    """By repeating one step until nothing is added."""
    found, open_ = set(), set(starts)
    while True:
        new = {o.index for o in of.operations if set(o.producers) & open_} - found
        if not new:
            return found
        found |= new
        open_ |= {i for i in new if through(of.operations[i])}


@pytest.mark.parametrize("seed", range(60))
def test_behind_and_before_find_what_repeated_steps_find(seed):
    of = drawn(seed)
    last = len(of.operations) - 1
    mirrored = recording([[last - c for c in of.consumers[last - i]] for i in range(last + 1)], [o.category for o in reversed(of.operations)])
    for through in (lambda o: True, lambda o: o.category != "layer"):
        ways = list(behind(of, [0], through))
        assert len(ways) == len({o.index for o in ways}) and {o.index for o in ways} == slow(of, [0], through)
        assert {o.index for o in before(mirrored, [last], through)} == {last - i for i in slow(of, [0], through)}
    assert is_output(of, of.operations[0]) == all(of.operations[i].category != "layer" for i in slow(of, [0], lambda o: True))


def test_the_nearest_comes_first():
    of = recording([[], [0], [1], [0], [2, 3]])
    assert [o.index for o in behind(of, [0])] == [1, 3, 2, 4] and [o.index for o in before(of, [4])] == [2, 3, 1, 0]
