"""Whether a change of the live model helped: figures of the same batch, seed and loss before and after it."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from gradcheck_doctor.records.findings import SEVERITIES, Finding, ReportData, Verified

LEVEL = 2.0            # decades: a gradient within [1e-2, 1e2] end to end is level (rule vanishing-gradient)
TOLERANCE = 0.02       # relative difference of two losses that says nothing
SHIFTED = frozenset({"remove-output-activation"})      # the loss means something else afterwards


@dataclass(frozen=True)
class Figures:
    """One look at the model.

    Attributes:
        own: rule name -> the value that the rule judges, at its worst place; rules with nothing to measure are absent.
        losses: of a short training of a throw-away copy; empty when none was asked for.
    """

    data: ReportData
    own: Mapping[str, float] = field(default_factory=dict)
    losses: tuple[float, ...] = ()

    @property
    def decades(self) -> float:
        """|log10| of the gradient at the first layer over that at the last, whatever the treatment is; nan when not measured."""
        seen = [float(r.gradient["rms"]) for r in self.data.layers if r.weight and r.on_spine and r.gradient.get("rms") is not None]
        if len(seen) < 2 or not seen[-1] > 0 or not math.isfinite(seen[0]):
            return math.nan
        return abs(math.log10(max(seen[0], 1e-45) / seen[-1]))

    @property
    def serious(self) -> int:
        return self.data.count("error") + self.data.count("warning")

    def named(self, rule: str) -> dict[str, float]:
        """What a change shows of itself."""
        figures = {rule: self.own.get(rule, math.nan), "gradient_decades": self.decades, "errors": float(self.data.count("error")), "findings": float(self.serious)}
        if self.losses:
            figures["last_loss"] = self.losses[-1]
        return {k: v for k, v in figures.items() if not math.isnan(v)}


def proof(finding: Finding | None, treatment: str, before: Figures, after: Figures) -> Verified:
    """Improved only if the finding is gone or milder, nothing new is wrong, and the loss of a short training is no worse."""
    rule = finding.rule if finding is not None else ""
    figures = (before.named(rule), after.named(rule))
    known = {f.rule for f in before.data.findings if f.severity == "error"}
    new = sorted({f.rule for f in after.data.findings if f.severity == "error"} - known)
    if new:
        return Verified("worse", *figures, f"new: {', '.join(new)}")
    if after.serious > before.serious:
        return Verified("worse", *figures, f"{after.serious} findings instead of {before.serious}")
    if after.decades > max(LEVEL, before.decades + 1.0):
        return Verified("worse", *figures, f"the gradient is uneven by {after.decades:.1f} decades, before by {before.decades:.1f}")
    if before.losses and not _loss_holds(treatment, before.losses, after.losses):
        return Verified("no-effect", *figures, f"a short training ends at a loss of {after.losses[-1]:.3g}, without the change at {before.losses[-1]:.3g}")
    if finding is None:
        return Verified("improved" if after.serious < before.serious else "no-effect", *figures, "" if after.serious < before.serious else "no finding fewer")
    grade = max((SEVERITIES.index(f.severity) for f in after.data.findings if f.rule == rule and _about(finding, f)), default=-1)
    if grade >= SEVERITIES.index(finding.severity):
        return Verified("no-effect", *figures, f"{rule} is still found")
    return Verified("improved", *figures)


def _about(finding: Finding, other: Finding) -> bool:
    """The other finding is about the same place, or the place has another name since a module was inserted."""
    return not finding.module or other.module == finding.module or other.module.startswith(finding.module + ".") or set(other.modules) & set(finding.modules) != set()


def _loss_holds(treatment: str, control: tuple[float, ...], treated: tuple[float, ...]) -> bool:
    if not treated or not math.isfinite(treated[-1]):
        return False
    if not math.isfinite(control[-1]):
        return True
    if treatment in SHIFTED:                               # compare what is gone of each
        return treated[0] - treated[-1] >= control[0] - control[-1] - TOLERANCE * abs(control[0])
    return treated[-1] <= control[-1] + TOLERANCE * abs(control[-1])
