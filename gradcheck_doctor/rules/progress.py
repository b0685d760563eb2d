"""How the loss of a run went: its phases, what is gone of it, whether it still falls."""
from __future__ import annotations

import math
from statistics import median

from gradcheck_doctor.records.recording import LossRecord, Recording

LEARNED = 0.5          # share of the first loss that must be gone for a run to count as learning
FLAT = 0.1             # share of the first loss that must be gone for a run to have gone anywhere
FEWEST = 10            # losses from which on a phase can be judged
BLOWN = 4.0            # losses of the first tenth over the very first, from which on the first steps raised it
MICRO = 0.5            # share by which the losses of two micro-batches may differ
ABNORMAL = 2.0         # first losses over those of the first twentieth, from which on the start itself was the fault


# -- phases --------------------------------------------------------------------------------------------------------------------------------
def _phases(recording: Recording) -> list[tuple[int, int]]:
    """(first step, step behind the last) of each phase of a script that trains in phases, each with its own optimizer; one of all steps otherwise."""
    spans: dict[int, tuple[int, int]] = {}
    for row in recording.steps:
        first, _ = spans.get(row.optimizer, (row.step, row.step))
        spans[row.optimizer] = (first, row.step)
    ordered = sorted(spans.values())
    end = max(recording.total_steps, recording.curve[-1][0] + 1 if recording.curve else 0)
    if len(ordered) < 2 or not all(a[1] < b[0] for a, b in zip(ordered, ordered[1:], strict=False)):
        return [(0, end)]
    return [(a[0], b[0]) for a, b in zip(ordered, [*ordered[1:], (end, end)], strict=True)]


def phase_start(recording: Recording) -> int:
    """First step of the last phase of a script that trains in phases (pretraining, then a new head); else 0."""
    phases = _phases(recording)
    return phases[-1][0] if len(phases) > 1 else 0


def phase(recording: Recording) -> tuple[int, int]:
    """(first step, step behind the last) of the last phase that has enough losses to be judged, of the last of all where none has."""
    phases = _phases(recording)
    return next((p for p in reversed(phases) if sum(p[0] <= step < p[1] for step, _ in recording.curve) >= FEWEST), phases[-1])


def adversarial(recording: Recording) -> bool:
    """Several optimizers take turns (a generator and its critic): no single loss has to fall. Each has a backward of its own; parts of one model, stepped
    one after the other behind the same backward, are trained by one loss."""
    return recording.kind == "run" and len({row.optimizer for row in recording.steps if row.backwards}) > 1 and not phase_start(recording)


def phase_curve(recording: Recording) -> list[float]:
    """Losses of the phase that is judged."""
    begin, end = phase(recording)
    return [v for step, v in recording.curve if begin <= step < end]


# -- how far it fell -----------------------------------------------------------------------------------------------------------------------
def constant_guess(recording: Recording) -> float | None:
    """The loss of the best constant prediction, where it is known: log C for classes, the variance of the targets for a squared error.

    Of several losses their sum, where the loss of the run is the sum of them.
    """
    if not recording.losses or phase(recording)[0] or not recording.curve:
        return None
    parts = [(loss.value, guess_of(loss)) for loss in recording.losses]
    whole = sum(value for value, _ in parts if value is not None)
    apart = MICRO if any(row.backwards > 1 for row in recording.steps[:1]) else 0.01        # of several batches a step, another one's loss may be shown
    if any(value is None or guess is None for value, guess in parts) or abs(recording.curve[0][1] - whole) > apart * abs(whole):
        return None
    return sum(guess for _, guess in parts if guess is not None)


def guess_of(loss: LossRecord) -> float | None:
    """What the best constant prediction costs in one loss."""
    if loss.reduction not in ("mean", "sum"):
        return None
    count = math.prod(loss.target_shape) if loss.reduction == "sum" else 1
    if loss.op == "cross_entropy" and loss.classes and loss.classes > 1:
        return math.log(loss.classes) * count
    if loss.op == "mse_loss" and loss.target_std:
        return loss.target_std**2 * count
    return math.log(2.0) * count if loss.op.startswith("binary_cross_entropy") else None


def progress(recording: Recording, until: int | None = None, *, early: bool = False) -> float | None:
    """Share of the first loss (or of a constant guess's, if that is less) that is gone at the end of the phase, or before step `until`.

    None with fewer than ten losses seen (five before `until`); negative: it rose. A start that is twice what follows in the first twentieth is
    left out where no constant guess is known: it may have been the fault itself. Where the first steps raise the loss, the first loss of all counts.

    Args:
        early: what fell in the first twentieth does not count; a bias that finds the frequency of a rare class does that much.
    """
    begin, end = phase(recording)
    values = [v for step, v in recording.curve if begin <= step < (end if until is None else until)]
    if len(values) < (FEWEST if until is None else 5):
        return None
    size = max(3, len(values) // 20)
    first, soon, last = median(values[:3]), median(values[:size]), median(values[-size:])
    blown = median(values[: max(size, len(values) // 10)]) > BLOWN * values[0] > 0
    if blown or min(first, soon) > ABNORMAL * values[0] > 0:
        first = soon = values[0]                                    # the first steps raised it: what they raised is no progress when it is gone
    guess = constant_guess(recording)
    if early or guess is None and first > ABNORMAL * soon > 0:
        first = min(first, soon)
    if not (math.isfinite(first) and math.isfinite(last)):
        return -math.inf
    if guess is not None and first > 0:
        first = min(first, guess)
    scale = max(abs(first), abs(last), 1e-30) if first <= 0 else first
    return (first - last) / scale


def went_nowhere(recording: Recording) -> bool:
    """A run whose loss ends where a constant guess or its own start is."""
    gone = progress(recording)
    return recording.kind == "run" and gone is not None and gone < FLAT


def falling(recording: Recording) -> bool:
    """The loss was still falling at the end: its last fifth lies more than 5 % below the fifth before."""
    values = phase_curve(recording)
    size = len(values) // 5
    return size >= 5 and median(values[-size:]) < 0.95 * median(values[-2 * size: -size])


def learned(recording: Recording) -> bool:
    """The loss fell by at least half, so whatever looks odd did not keep the model from training.

    A loss of unknown making may have no floor at 0 (a log-likelihood): a fifth is enough when it fell steadily to the end.
    """
    gone = progress(recording, early=True)
    if gone is None:
        return False
    unknown = bool(recording.losses) and all(x.op == "scalar" for x in recording.losses)
    return gone >= LEARNED or unknown and gone >= 0.2 and steady(recording)


def _quarters(recording: Recording, fewest: int) -> list[list[float]] | None:
    """The losses of the phase in four parts; None where they are not finite or a part has fewer than `fewest`."""
    values = phase_curve(recording)
    size = len(values) // 4
    if size < fewest or not all(math.isfinite(v) for v in values):
        return None
    return [values[i * size: (i + 1) * size] for i in range(4)]


def stays_down(recording: Recording) -> bool:
    """The last quarter of the losses is hardly above the best of the quarters."""
    middles = [median(q) for q in _quarters(recording, 3) or ()]
    return bool(middles) and middles[-1] <= min(middles) + 0.05 * abs(min(middles))


def steady(recording: Recording) -> bool:
    """Each quarter of the losses lies clearly below the one before, measured by their scatter."""
    quarters = _quarters(recording, 10)
    if quarters is None:
        return False
    middles = [median(q) for q in quarters]
    scatter = median(median(abs(v - m) for v in q) for q, m in zip(quarters, middles, strict=True))
    return all(b < a - 0.3 * scatter for a, b in zip(middles, middles[1:], strict=False))


def mild(recording: Recording, severity: str = "info") -> str | None:
    """Cap for rules whose fault would show in the loss: `severity` when the run learned, else None."""
    return severity if learned(recording) else None
