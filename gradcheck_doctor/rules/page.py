"""A rule's documentation page, made from its declaration alone."""
from __future__ import annotations

from gradcheck_doctor.rules.base import Rule


def markdown(rule: type[Rule]) -> str:
    """Title, docstring with its sections as headings, and the threshold with its source."""
    lines = [f"# {rule.code} {rule.name}", ""]
    for paragraph in rule.page().split("\n\n"):
        head, colon, rest = paragraph.partition(": ")
        if colon and head in ("What it measures", "Why it matters", "When it is harmless", "Sources"):
            lines += [f"## {head}", "", rest[:1].upper() + rest[1:], ""]
        else:
            lines += [paragraph, ""]
    limits = [f"{name} {'at or above' if rule.threshold.direction == 'above' else 'at or below'} {value:g}"
              for name in ("error", "warning", "info") if (value := getattr(rule.threshold, name)) is not None]
    lines += ["## Threshold", "", f"{'; '.join(limits) or 'informational'} ({rule.threshold.unit}). Source: {rule.threshold.source}."]
    return "\n".join(lines)
