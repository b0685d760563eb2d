"""A rule's documentation page, made from its declaration; the examples beside the documentation are added where they are at hand."""
from __future__ import annotations

from collections.abc import Mapping

from gradcheck_doctor.rules.base import Rule


def markdown(rule: type[Rule], examples: Mapping[str, str] | None = None) -> str:
    """Title, docstring with its sections as headings, the threshold with its source, and a chapter for each example file (name -> source)."""
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
    for name, source in (examples or {}).items():
        state, _, variant = name.removesuffix(".py").partition("_")
        lines += ["", f"## {'Sick' if state == 'sick' else 'Cured'}{f' ({variant})' if variant else ''}", "", "```python", source.rstrip("\n"), "```"]
    return "\n".join(lines)
