"""Applies the rules to a recording: root causes first, symptoms under what explains them."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from gradcheck_doctor.packs import complain
from gradcheck_doctor.records.findings import SEVERITIES, Finding
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Rule, Threshold
from gradcheck_doctor.rules.progress import adversarial
from gradcheck_doctor.rules.registry import expand, find, rules

SERIOUS = ("warning", "error")
ROOTS = 450            # causal order below which a finding is about the output, the data, the initialisation or the activations


def diagnose(recording: Recording, *, config: Any = None, select: Iterable[str] = (), ignore: Iterable[str] = (),
             chosen: Iterable[type[Rule]] | None = None, readings: dict[str, float] | None = None) -> tuple[Finding, ...]:
    """Findings on `recording`, the one to act on first.

    Args:
        recording: what was seen.
        config: an object with `select`, `extend_select`, `ignore` and `thresholds` (code or name -> {"warning": x, "error": y}), or None.
        select, ignore: the same without a config.
        chosen: rule classes to apply instead of all.
        readings: filled with each rule's worst value, healthy ones too, by rule name (units as in the rule's threshold).
    """
    active = tuple(chosen) if chosen is not None else _active(config, tuple(select), tuple(ignore))
    limits: Mapping[str, Mapping[str, float]] = {find(rule).code: levels for rule, levels in (getattr(config, "thresholds", None) or {}).items()}
    order = {rule.code: rule.order for rule in active}
    weak = frozenset(rule.code for rule in active if rule.weak)
    explains = {rule.code: rule.explains for rule in active}
    found: list[Finding] = []
    for rule in active:
        if recording.kind in rule.kinds:
            values: list[float] = []
            found.extend(_findings(rule, recording, _threshold(rule, limits.get(rule.code)), values))
            worst = rule.threshold.worst(values)
            if readings is not None and worst is not None:
                readings[rule.name] = worst
    found = _unique(found)
    found = _demoted(_without_close(found, order, weak), weak)
    if adversarial(recording):
        found = [replace(f, severity="info") if f.severity == "warning" else f for f in found]
    found.sort(key=lambda f: (order[f.code] if f.order is None else f.order, -SEVERITIES.index(f.severity), f.operations[:1], f.module, f.op))
    return _grouped(found, explains)


def _findings(rule: type[Rule], recording: Recording, threshold: Threshold | None, readings: list[float]) -> list[Finding]:
    """What one rule finds. A rule that raises is said and left out: what the others found, perhaps over hours, is not lost with it."""
    try:
        return list(rule().check(recording, threshold, readings))
    except Exception as error:
        complain(f"the rule {rule.code} {rule.name} of {rule.__module__} failed and is left out ({type(error).__name__}: {error})")
        return []


def selected(config: Any) -> frozenset[str]:
    """Codes of the rules that a configuration turns on."""
    return frozenset(rule.code for rule in _active(config, (), ()))


def _active(config: Any, select: tuple[str, ...], ignore: tuple[str, ...]) -> tuple[type[Rule], ...]:
    chosen = tuple(getattr(config, "select", ()) or ()) + select
    extra = tuple(getattr(config, "extend_select", ()) or ())
    dropped = expand(tuple(getattr(config, "ignore", ()) or ()) + ignore)
    wanted = (expand(chosen) if chosen else frozenset(r.code for r in rules())) | expand(extra)
    exact = {s.upper() for s in (*chosen, *extra)}
    return tuple(r for r in rules() if r.code in wanted and (r.code not in dropped or r.code in exact and r.code not in {i.upper() for i in ignore}))


def _threshold(rule: type[Rule], changed: Mapping[str, float] | None) -> Threshold | None:
    values: dict[str, Any] = dict(changed or {})
    return replace(rule.threshold, **values) if values else None


def _unique(found: list[Finding]) -> list[Finding]:
    """One finding a fingerprint: the gravest, with how often it was found."""
    kept: dict[str, Finding] = {}
    for finding in found:
        known = kept.get(finding.fingerprint)
        if known is None or SEVERITIES.index(finding.severity) > SEVERITIES.index(known.severity):
            kept[finding.fingerprint] = finding
    return list(kept.values())


def _without_close(found: list[Finding], order: Mapping[str, int], weak: frozenset[str]) -> list[Finding]:
    """What is hardly beyond its limit is info where a serious finding, not itself weak or close, is nearer to the root."""
    roots = [f for f in found if f.severity in SERIOUS and not f.close and (order[f.code] if f.code not in weak else ROOTS) < ROOTS]
    return [replace(f, severity="info") if roots and f.close and f.severity in SERIOUS else f for f in found]


def _demoted(found: list[Finding], weak: frozenset[str]) -> list[Finding]:
    """Weak evidence is info beside a serious finding that can be its cause; not where the rule is certain enough to place it itself."""
    if not any(f.severity in SERIOUS and (f.code not in weak or f.order is not None) for f in found):
        return found
    return [replace(f, severity="info") if f.code in weak and f.order is None and f.severity in SERIOUS else f for f in found]


def _grouped(found: list[Finding], explains: Mapping[str, tuple[str, ...]]) -> tuple[Finding, ...]:
    """Serious findings first, each followed by the symptoms it explains, mere information included; a symptom never comes before its cause."""
    serious = [f for f in found if f.severity in SERIOUS]
    minor = [f for f in found if f.severity not in SERIOUS]
    result: list[Finding] = []
    while serious:
        finding = next((f for f in serious if not _has_cause(f, serious, explains)), serious[0])
        symptoms = [f for f in (*serious, *minor) if f.code in explains[finding.code] and f is not finding]
        serious = [f for f in serious if f is not finding and f not in symptoms]
        minor = [f for f in minor if f not in symptoms]
        result += [replace(finding, related=tuple(f.fingerprint for f in symptoms)), *symptoms]
    return (*result, *minor)


def _has_cause(finding: Finding, others: list[Finding], explains: Mapping[str, tuple[str, ...]]) -> bool:
    """Another finding explains it and is not explained by it in turn."""
    return any(finding.code in explains[f.code] and f.code not in explains[finding.code] for f in others)
