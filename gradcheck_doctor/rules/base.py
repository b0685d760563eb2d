"""What every rule is: a measure on a recording, a threshold with its source, a prescription."""
from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from gradcheck_doctor.records.findings import SEVERITIES, Finding, Fix, Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.records.sites import Span


@dataclass(frozen=True)
class Threshold:
    """Where a value becomes a warning and an error. `direction` "above": larger is worse; "below": smaller is worse.

    None: that severity is never reached by the value alone.
    """

    warning: float | None
    error: float | None
    unit: str
    source: str
    direction: str = "above"
    info: float | None = None

    def severity(self, value: float) -> str | None:
        """Severity of `value`, or None when it is healthy. Not-a-number is never healthy nor sick: None."""
        for name, limit in (("error", self.error), ("warning", self.warning), ("info", self.info)):
            if limit is not None and (value >= limit if self.direction == "above" else value <= limit):
                return name
        return None

    def worst(self, values: Iterable[float]) -> float | None:
        """The value nearest to (or furthest beyond) the limits; None without values."""
        return max(values, default=None) if self.direction == "above" else min(values, default=None)

    def crossed(self, value: float) -> float | None:
        """The limit that `value` crossed, for the message."""
        severity = self.severity(value)
        return getattr(self, severity) if severity else None


@dataclass(frozen=True)
class Measurement:
    """One measured value at one place. The base class compares it; the rule only measures.

    Attributes:
        value: what the threshold judges (unit as in the rule's threshold).
        order: causal order of this finding where it differs from the rule's.
        cap: highest severity the evidence allows here, for what is true but without effect ("info"), or None.
        floor: severity regardless of the value, for exact facts (a doubled softmax), or None.
        location: the user's expression at fault.
        operations: indices of the recording's operations it is about (used to find what explains what).
        close: the value is beyond its limit by no more than one draw of the weights differs from the next: info beside a cause that is certain.
    """

    value: float
    module: str = ""
    modules: tuple[str, ...] = ()
    op: str = ""
    location: Span | None = None
    operations: tuple[int, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)
    cap: str | None = None
    order: int | None = None
    floor: str | None = None
    close: bool = False


@dataclass(frozen=True)
class Unmeasured:
    """A place where the rule could not look, and why."""

    module: str
    reason: str


class Rule(ABC):
    """Base of all rules. The class docstring of a rule is its documentation page.

    The docstring's sections, each a line ending in a colon and an indented or plain paragraph below:
    first paragraph (what it is), "What it measures", "Why it matters", "When it is harmless", "Sources".
    """

    code: ClassVar[str]
    name: ClassVar[str]
    summary: ClassVar[str]                       # one line, for `doctor rule`
    threshold: ClassVar[Threshold]
    #: Causal order, smaller is nearer to the root: 100 output and loss, 200 data, 300 init, 400 activations, 450 structure and optimizer,
    #: 600 flow, 700 symptoms over time.
    order: ClassVar[int] = 500
    explains: ClassVar[tuple[str, ...]] = ()     # codes whose findings are symptoms of this one when both are found
    weak: ClassVar[bool] = False                 # counts only where nothing else explains the trouble: beside a cause it is info
    kinds: ClassVar[tuple[str, ...]] = ("audit", "run")

    @abstractmethod
    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        """Yield one measurement for each place the rule looks at, healthy ones included."""

    @abstractmethod
    def message(self, measurement: Measurement) -> str:
        """One sentence with the measured figure (the limit is appended by the base class when the rule leaves `{limit}` in it)."""

    def prescribe(self, measurement: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        """Cures for one sick measurement, the preferred one first."""
        return ()

    @final
    def check(self, recording: Recording, threshold: Threshold | None = None, readings: list[float] | None = None) -> Iterator[Finding]:
        """Findings of this rule; the comparison is the same for all rules. Every value measured, healthy ones too, is added to `readings`."""
        limits = threshold or self.threshold
        for measured in self.measure(recording):
            if isinstance(measured, Unmeasured):
                continue
            if readings is not None and not math.isnan(measured.value):
                readings.append(measured.value)
            severity = measured.floor or limits.severity(measured.value)
            if severity is None:
                continue
            if measured.cap is not None:
                severity = min(severity, measured.cap, key=SEVERITIES.index)
            limit = limits.crossed(measured.value)
            module = recording.module.get(measured.module)
            yield Finding(
                code=self.code, rule=self.name, severity=severity,
                message=self.message(measured).replace("{limit}", "" if limit is None else f"{limit:g}"),
                module=measured.module, modules=measured.modules or ((measured.module,) if measured.module else ()),
                op=measured.op, location=measured.location,
                evidence={**measured.evidence, **({} if limit is None else {"threshold": limit})},
                fixes=tuple(Fix(p) for p in self.prescribe(measured, recording)), operations=measured.operations, order=measured.order, close=measured.close,
                built=module.built if module is not None else None)

    @classmethod
    def page(cls) -> str:
        return inspect.getdoc(cls) or cls.summary
