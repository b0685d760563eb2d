"""What was concluded: findings, prescriptions, fixes and the report's content. Standard library only."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gradcheck_doctor.records.sites import Span

#: The blind spot of a run of which nothing can be said.
NOTHING_SEEN = ("no training was seen: no backward and no optimizer step of this process; what torch.func alone trains is not watched, "
                "nor are processes that the script starts itself (start them with torchrun)")
#: That of one whose weights nothing changed.
NO_STEP = "no optimizer stepped and no weight changed: what only shows in the course of a training was not judged"
#: That of one whose steps were seen, but nothing of the model.
NO_FORWARD = "no forward was seen: the training runs in another thread than the one that is watched"
STALLED = 0.95         # share of the loss that is left at the end of a run that went nowhere
SOURCE = "source_sha256"                      # in a report's probe: the digest of the file it is about
SEVERITIES = ("info", "warning", "error")     # in rising order


@dataclass(frozen=True)
class Prescription:
    """A treatment by name, where and with which arguments. Rules make them; treatments turn them into changes.

    `treatment`: initialise, replace-activation, insert-norm, input-norm, drop-bias, swap-dropout-norm, alpha-dropout, clip-by-norm,
    clip-value-to-norm, remove-output-activation, replace-loss, learning-rate, add-parameters, zero-grad, adam-epsilon, target-bias, ...
    `modules` are the paths it acts on; `span` the expression to edit where no module is built there.
    """

    treatment: str
    title: str
    safety: str = "unsafe"                    # safe | unsafe
    kind: str = "other"                       # init | activation | norm | clip | loss | optimizer | input | other
    modules: tuple[str, ...] = ()
    span: Span | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        suffix = self.arguments.get("scheme") or self.arguments.get("to") or ""
        return f"{self.treatment}-{suffix}".strip("-").replace("_", "-").replace(" ", "-")


@dataclass(frozen=True)
class Edit:
    """Replace the text of `span` by `text`."""

    span: Span
    text: str


@dataclass(frozen=True)
class Verified:
    status: str = "not-run"                   # improved | no-effect | worse | not-run | unmeasurable
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Fix:
    prescription: Prescription
    edits: tuple[Edit, ...] = ()
    verified: Verified = field(default_factory=Verified)
    refusal: str = ""                         # why there is no edit


@dataclass(frozen=True)
class Finding:
    code: str
    rule: str
    severity: str
    message: str
    module: str = ""
    modules: tuple[str, ...] = ()
    op: str = ""
    location: Span | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    fixes: tuple[Fix, ...] = ()
    related: tuple[str, ...] = ()             # fingerprints of findings this one explains
    order: int | None = None                  # causal order where it differs from the rule's; not in the JSON
    close: bool = False                       # hardly beyond its limit; not in the JSON
    operations: tuple[int, ...] = ()          # indices into Recording.operations, for the engine; not in the JSON
    built: Span | None = None                 # where the module is built, if that is not the location: a comment there counts, too; not in the JSON
    known_as: str = ""                        # its fingerprint, where it was read from a report

    @property
    def fingerprint(self) -> str:
        """Stable across runs, line moves and checkouts: rule, file, module path and op; no line number, no figure, no folder above the project."""
        if self.known_as:
            return self.known_as
        import hashlib

        from gradcheck_doctor.records.sources import home_path

        key = "|".join((self.code, home_path(self.location.file) if self.location else "", self.module, self.op))
        return hashlib.sha256(key.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class LayerRow:
    """One line of the layer table."""

    module: str
    op: str
    order: int
    on_spine: bool
    location: Span | None = None
    forward: Mapping[str, float] = field(default_factory=dict)     # mean, std, zero_fraction
    gradient: Mapping[str, float] = field(default_factory=dict)    # norm, rms
    weight: Mapping[str, Any] = field(default_factory=dict)        # std, scheme, gain
    verdict: str = ""                          # codes of the findings that name it


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows; front ends render it, codec writes and reads it."""

    target: str
    kind: str                                  # audit | run
    model: Mapping[str, Any]                   # class, parameters, trainable_parameters, device, dtype
    probe: Mapping[str, Any]
    findings: tuple[Finding, ...] = ()         # root causes first
    layers: tuple[LayerRow, ...] = ()
    curves: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    blind_spots: tuple[Any, ...] = ()          # records.sites.BlindSpot
    suppressed: int = 0
    version: str = ""
    readings: Mapping[str, float] = field(default_factory=dict)   # each rule's worst value, healthy ones too, by rule name

    def count(self, severity: str) -> int:
        return sum(f.severity == severity for f in self.findings)

    @property
    def explained(self) -> frozenset[str]:
        """Fingerprints of the findings that another one explains."""
        return frozenset(fingerprint for f in self.findings for fingerprint in f.related)

    @property
    def causes(self) -> tuple[Finding, ...]:
        """The findings that no other one explains."""
        explained = self.explained
        return tuple(f for f in self.findings if f.fingerprint not in explained)

    @property
    def verdict(self) -> str:
        return "sick" if self.count("error") else "watch" if self.count("warning") else "healthy"

    @property
    def nothing_seen(self) -> bool:
        """A run without findings because there was nothing to find them in."""
        return self.verdict == "healthy" and any(spot.reason in (NOTHING_SEEN, NO_STEP, NO_FORWARD) for spot in self.blind_spots)

    @property
    def stalled(self) -> bool:
        """Nothing serious was found, yet the loss of the run hardly fell: that is not called healthy."""
        first, last = self.ends
        return self.verdict == "healthy" and first > 0 and STALLED * first < last < math.inf

    @property
    def ends(self) -> tuple[float, float]:
        """The loss at the beginning and at the end of the curve; nan where fewer than ten values are known."""
        from statistics import median

        values = [value for _, value in self.curves.get("loss", ())]
        return (median(values[:3]), median(values[-max(3, len(values) // 20):])) if len(values) >= 10 else (math.nan, math.nan)

    @property
    def headline(self) -> str:
        """The verdict as people read it."""
        if not self.nothing_seen:
            return "nothing serious found" if self.stalled else self.verdict
        return "nothing observed" if any(spot.reason == NOTHING_SEEN for spot in self.blind_spots) else "no training observed"

    @property
    def fixable(self) -> int:
        return sum(any(fix.edits or not fix.refusal for fix in f.fixes) for f in self.findings)
