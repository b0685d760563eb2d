from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import back, first_nonfinite, location
from gradcheck_doctor.rules.progress import mild

LOGS = frozenset({"log", "log2", "log10"})
ROOTS = frozenset({"sqrt", "rsqrt"})
SMALLEST = 1.2e-38     # smallest normal float32: its log is -87, that of 0 is -inf


class UnsafeLog(Rule):
    """A logarithm or a square root is taken of a number that can reach 0.

    What it measures: the smallest input of log, sqrt and rsqrt seen on any observed step (1 over it, so that larger is worse); a log straight behind a
    softmax or sigmoid is stated as info even while its input is still away from 0.

    Why it matters: log(0) is -inf and 0 * -inf is NaN; the derivative of sqrt at 0 is infinite. One such batch and the weights are gone.

    When it is harmless: the input is clamped, or bounded away from 0; a run that learned.

    Sources: IEEE 754; torch.nn.functional.log_softmax and binary_cross_entropy_with_logits compute the same in one safe step.
    """

    code = "GD807"
    name = "unsafe-log"
    summary = "log or sqrt of a number that reaches 0"
    threshold = Threshold(1 / SMALLEST, None, "1 / smallest input", "the smallest normal float32, 1.2e-38", info=1.0)
    order = 694

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for operation in recording.operations:
            if operation.op not in LOGS | ROOTS or not operation.producers or not operation.requires_grad:
                continue
            made = recording.operations[operation.producers[0]]
            lows = [s.forward.minimum for s in made.observed if s.forward is not None and s.forward.finite]
            behind = _bounded(recording, operation)
            if not lows or not (behind or min(lows) <= SMALLEST):
                continue
            low = min(lows)
            yield Measurement(value=1 / max(low, 1e-45), module=operation.module, op=operation.op, location=location(recording, operation),
                              operations=(operation.index,), cap="info" if low > SMALLEST or first_nonfinite(recording) is not None else mild(recording),
                              evidence={"smallest_input": low, "behind": behind})

    def message(self, m: Measurement) -> str:
        low, behind = m.evidence["smallest_input"], m.evidence["behind"]
        source = f" behind {behind}" if behind else ""
        return f"{m.op}{source} is taken of values down to {low:.2g}" + ("; its value or its derivative is infinite there" if low <= SMALLEST else "")

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return clamped(m.op, m.location)


def clamped(op: str, span: Span | None) -> tuple[Prescription, ...]:
    """Keep the input of a log or root away from 0."""
    return (Prescription("clamp-input", f"Keep the input of {op} away from 0: clamp it at 1e-7", kind="loss", span=span, arguments={"minimum": 1e-7}),)


def _bounded(recording: Recording, operation: Operation) -> str:
    """softmax or sigmoid when the log is taken of its output (or of 1 minus it)."""
    maker = back(recording, operation, ("shape", "scale"))
    return maker.op if operation.op in LOGS and maker is not None and maker.op in ("softmax", "sigmoid") else ""
