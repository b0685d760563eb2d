"""What is kept of a tensor: a few numbers, and how two of them merge."""
from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Summary:
    """Statistics of one tensor on one observed step. No unit unless said; nan where not measured.

    `mean`, `std` and `zero_fraction` may come from a sample (`sampled`). `norm` and `finite` are those of the whole tensor in a probe, on the first
    observed steps of each phase of a run, and after a loss that was not finite; on later steps they come from the sample, too. Least and largest value
    (`absmax`) are exact in float16, beside anything not finite that was seen, and when not `sampled`; else they bound the true ones from inside.
    """

    count: int                      # elements of the whole tensor
    mean: float
    std: float                      # over all elements
    rms: float
    absmax: float                   # see above
    norm: float                     # L2 norm of the whole tensor, see above
    zero_fraction: float            # share of elements that are exactly 0
    sample_std: float = math.nan    # rms over features of the standard deviation over the samples (axis 0): what the batch changes
    minimum: float = math.nan
    maximum: float = math.nan
    finite: bool = True             # no NaN and no infinity in what was looked at
    sampled: bool = False

    def merge(self, other: Summary) -> Summary:
        """Summary of both tensors together (exact, but for `sample_std`, which becomes the weighted rms)."""
        n, m = self.count, other.count
        total = n + m
        if total == 0:
            return self
        mean = (n * self.mean + m * other.mean) / total
        square = (n * self.rms**2 + m * other.rms**2) / total
        spread = math.sqrt((n * (self.std**2 + (self.mean - mean) ** 2) + m * (other.std**2 + (other.mean - mean) ** 2)) / total)
        return replace(
            self, count=total, mean=mean, std=spread, rms=math.sqrt(square), absmax=max(self.absmax, other.absmax),
            norm=math.hypot(self.norm, other.norm), zero_fraction=(n * self.zero_fraction + m * other.zero_fraction) / total,
            sample_std=math.sqrt((n * self.sample_std**2 + m * other.sample_std**2) / total),
            minimum=min(self.minimum, other.minimum), maximum=max(self.maximum, other.maximum),
            finite=self.finite and other.finite, sampled=self.sampled or other.sampled)


@dataclass(frozen=True)
class Units:
    """Activity of the units (features, channels) of one activation, over every sample and position seen so far.

    `dead` counts units never above zero (ReLU-like) over all `samples`; `saturated` counts units of a bounded activation
    whose derivative was below 1 % of its largest for at least 95 % of the samples, `flat_share` is the share of all their values with such a
    derivative. `always_on` counts ReLU units never at 0 on the steps read in full.
    """

    units: int
    samples: int
    dead: int = 0
    saturated: int = 0
    always_on: int = 0
    indices: tuple[int, ...] = ()   # of the dead (or saturated) units, at most 64
    flat_share: float = 0.0

    @property
    def dead_fraction(self) -> float:
        return self.dead / self.units if self.units else 0.0

    @property
    def saturated_fraction(self) -> float:
        return self.saturated / self.units if self.units else 0.0
