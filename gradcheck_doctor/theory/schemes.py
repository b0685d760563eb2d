"""Which initialisation a weight follows, told from a few numbers about it by a statistical test."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

from gradcheck_doctor.theory.initialisation import TRUNCATED_STD, glorot_std, he_std, lecun_std, torch_default_std

SMALL = 24             # elements below which nothing can be told
FEW = 400              # elements below which a known scheme of another shape that fits is likelier than an unknown one
KS_CRITICAL = 1.95     # Kolmogorov-Smirnov: D sqrt(n) above this has p < 0.001
DEFAULT = "torch default"                                # how the names of the ways begin in which torch's layers draw their weights
TORCH_DEFAULT = f"{DEFAULT} (kaiming_uniform a=sqrt(5))"
LOADED = "trained or loaded"
TOO_SMALL = "too small to tell"


@dataclass(frozen=True)
class Sample:
    """Numbers that describe a weight; `quantiles` are evenly spaced from the smallest to the largest of at most 4,096 elements."""

    count: int
    mean: float
    std: float
    absmax: float
    kurtosis: float
    quantiles: tuple[float, ...]
    constant: bool
    orthogonal: bool
    distinct: int


@dataclass(frozen=True)
class SchemeMatch:
    """`never_trained` is None where the test can't tell."""

    name: str
    gain: float | None
    never_trained: bool | None
    aliases: tuple[str, ...] = ()


def recognise(sample: Sample, fan_in: int | None, fan_out: int | None, *, role: str = "weight") -> SchemeMatch:
    """Name the initialisation that `sample` follows.

    Shape by a Kolmogorov-Smirnov distance at p = 0.001 against uniform, normal and truncated normal; spread by the sampling error of a
    standard deviation, 3 sqrt((kurtosis - 1) / (4 n)). A weight that fits no shape was trained or loaded.
    """
    gain = None if fan_in is None else sample.std * math.sqrt(fan_in)
    if sample.constant:
        value = sample.mean
        name = "zeros" if value == 0 else "ones" if value == 1 else f"constant {value:.3g}"
        return SchemeMatch(name, gain, True)
    if not sample.quantiles or sample.count < SMALL:
        return SchemeMatch(TOO_SMALL, gain, None)
    if sample.orthogonal:
        return SchemeMatch("orthogonal", gain, True)
    shapes = _shapes(sample)
    if not shapes:
        return SchemeMatch(LOADED, gain, None if sample.count < 200 else False)
    candidates = [(kind, name) for kind, name, std in _candidates(fan_in, fan_out, role) if _same_spread(sample, std)]
    names = [name for shape in (shapes if sample.count < FEW else shapes[:1]) for kind, name in candidates if kind == shape]
    if names:
        return SchemeMatch(names[0], gain, True, tuple(names[1:]))
    return SchemeMatch(_fixed(shapes[0], sample), gain, True)


def _fixed(shape: str, sample: Sample) -> str:
    if shape == "uniform":
        low, high = sample.quantiles[0], sample.quantiles[-1]
        if abs(sample.mean) > 0.1 * sample.std:
            return f"uniform {low:.2g} to {high:.2g}"
        return f"uniform +-{math.sqrt(3) * sample.std:.2g}"
    prefix = "truncated normal" if shape == "truncated" else "normal"
    offset = f" mean={sample.mean:.2g}" if abs(sample.mean) > 0.1 * sample.std else ""
    return f"{prefix} std={sample.std:.2g}{offset}"


def _candidates(fan_in: int | None, fan_out: int | None, role: str) -> Iterator[tuple[str, str, float]]:
    """(shape, name, standard deviation) of the known schemes, the likeliest first."""
    if not fan_in or not fan_out:
        return
    if fan_in == 1:                                     # an embedding: what it is made with, and not LeCun's
        yield "normal", "normal std=1", 1.0
    if "bias" in role or "_hh" in role or "_ih" in role:
        for fan in dict.fromkeys((fan_in, fan_out)):
            yield "uniform", f"{DEFAULT} (uniform 1/sqrt(fan))", torch_default_std(fan)
    yield "uniform", TORCH_DEFAULT, torch_default_std(fan_in)
    if role == "in_proj_weight":
        yield "uniform", f"{DEFAULT} (glorot uniform, packed)", glorot_std(fan_in, 3 * fan_in)
    for shape in ("uniform", "normal", "truncated"):
        word = "truncated normal" if shape == "truncated" else shape
        yield shape, f"he {word}", he_std(fan_in)
        yield shape, f"glorot {word}", glorot_std(fan_in, fan_out)
        yield shape, f"lecun {word}", lecun_std(fan_in)
        yield shape, f"he {word} (fan_out)", he_std(fan_out)
        yield shape, f"selu gain 3/4 {word}", 0.75 * lecun_std(fan_in)
        yield shape, f"glorot {word} (tanh gain 5/3)", glorot_std(fan_in, fan_out, 5 / 3)
    yield "normal", "normal std=1", 1.0


def _same_spread(sample: Sample, std: float) -> bool:
    n = min(sample.count, 4096)
    kurtosis = sample.kurtosis if math.isfinite(sample.kurtosis) else 3.0
    error = 3.0 * math.sqrt(max(kurtosis - 1.0, 0.2) / (4.0 * n))
    return abs(sample.mean) <= 4.0 * sample.std / math.sqrt(n) + 1e-12 and abs(sample.std / std - 1.0) <= error + 1e-3


def _shapes(sample: Sample) -> list[str]:
    """The distributions whose quantiles fit at p = 0.001, the best first."""
    normal = NormalDist()
    half = sample.std * math.sqrt(3.0)
    mean, std = sample.mean, sample.std
    cut_std = std / TRUNCATED_STD
    low, high = normal.cdf(-2.0), normal.cdf(2.0)

    def truncated(x: float) -> float:
        return min(max((normal.cdf((x - mean) / cut_std) - low) / (high - low), 0.0), 1.0)

    distances = {
        "uniform": _distance(sample, lambda x: min(max((x - mean + half) / (2 * half), 0.0), 1.0)),
        "normal": _distance(sample, lambda x: normal.cdf((x - mean) / std)),
        "truncated": _distance(sample, truncated),
    }
    fitting = {k: d for k, d in distances.items() if d <= KS_CRITICAL / math.sqrt(min(sample.count, 4096)) + 0.5 / len(sample.quantiles) / 2}
    if "truncated" in fitting and "normal" in fitting:
        fitting.pop("truncated" if sample.kurtosis > 2.7 or sample.absmax > 2.3 * cut_std else "normal")
    return sorted(fitting, key=lambda k: fitting[k])


def _distance(sample: Sample, cdf: Callable[[float], float]) -> float:
    """Largest gap between the empirical distribution at its quantiles and `cdf`."""
    last = len(sample.quantiles) - 1
    return max(abs(cdf(x) - i / last) for i, x in enumerate(sample.quantiles) if 0 < i < last)
