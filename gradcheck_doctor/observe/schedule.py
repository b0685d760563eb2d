"""Which optimizer steps are observed: dense at the start, then ever rarer, within a budget of time."""
from __future__ import annotations

import time

from gradcheck_doctor.records.interval import interval

DENSE = 8              # first steps, all observed
GROWTH = 1.06          # then the next observed step is this factor further on
BUDGET = 0.01          # share of the running time that "auto" may cost
NORMS, NORMS_EVERY = 200, 10   # gradient norms beside observed steps where only counts decide: of the first 200 steps, then of each tenth
NORM_SHARE = 0.0015    # share of the running time for gradient norms beside observed steps, with "auto"
NORM_GRACE_SECONDS = 0.2       # may go into them whatever the share
NORM_SHARE_FIXED = 0.0005      # the same where the user chose which steps to observe
GRACE_SECONDS = 4.0    # may be spent whatever the share: a script of seconds is worth looking at closely


class Schedule:
    """`every` = N observes each N-th step (and the first `DENSE`); "auto" follows the budget."""

    def __init__(self, every: int | str = "auto", budget: float = BUDGET, grace: float = GRACE_SECONDS, together: int = 1) -> None:
        self.every: int | str = interval(every)
        self.budget, self.grace, self.together = budget, grace, together
        self.agreed = False          # several ranks: time differs between them, so only counts decide
        self.spent = 0.0             # seconds in our own code so far, all told
        self._norms = 0.0            # of these on gradient norms beside observed steps
        self.started = time.perf_counter()
        self.observed = 0
        self._next = 0
        self._run = 0
        self._dense_from = 0

    def wants(self, step: int) -> bool:
        """Whether optimizer step number `step` (from 0) is to be observed."""
        if isinstance(self.every, int):
            return self._dense_from <= step < self._dense_from + DENSE or step % self.every < self.together
        if self.dense(step) or self._run > 0:
            return True
        return step >= self._next and (self.agreed or self.affordable(1.0))

    def dense(self, step: int) -> bool:
        """Whether `step` is one of the first of a phase: these are looked at in full, later ones by samples."""
        return self._dense_from <= step < self._dense_from + DENSE * self.together

    def wants_norm(self, step: int, now: float) -> bool:
        """Whether the gradient norm of a step that is not observed is worth its time; `now` by `time.perf_counter`."""
        if self.agreed:
            return step < NORMS or step % NORMS_EVERY == 0
        elapsed = now - self.started
        if isinstance(self.every, int):
            return self._norms <= NORM_SHARE_FIXED * elapsed
        return self._norms <= NORM_GRACE_SECONDS + NORM_SHARE * elapsed and self.affordable(1.0)

    def norm_taken(self, seconds: float) -> None:
        """The gradient norm of a step that is not observed took that long."""
        self._norms += seconds

    def restart(self, step: int) -> None:
        """Something changed (a new optimizer): look closely again."""
        if step > 0:
            self._dense_from = step + 1

    def affordable(self, share: float) -> bool:
        """Whether what was spent is within `share` of the budget."""
        elapsed = time.perf_counter() - self.started
        return self.spent <= share * max(self.grace, self.budget * elapsed)

    def done(self, step: int) -> None:
        """An observed step ended."""
        self.observed += 1
        self._run = self.together - 1 if self._run <= 0 else self._run - 1
        self._next = max(step + 1, int(step * GROWTH) + 1)

    def describe(self, steps: int) -> str:
        auto = "auto (by count, the same steps on all ranks)" if self.agreed else f"auto ({self.budget:.0%} of the time, at least {self.grace:g} s)"
        mode = f"every {self.every}" if isinstance(self.every, int) else auto
        return f"{mode}: {self.observed} of {steps} steps, {self.spent:.2f} s"
