"""A rule's documentation page, made from its declaration and its examples."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gradcheck_doctor.rules.base import Rule

PACKED = Path(__file__).parent / "examples"                     # in an installed package
CHECKOUT = Path(__file__).parents[2] / "docs" / "rules"         # in a clone


def examples(rule: type[Rule]) -> dict[str, str]:
    """File name -> source of the rule's example models, each sick one followed by its cured twin; empty for rules that only judge training."""
    folder = next((f for f in (PACKED / rule.name, CHECKOUT / rule.name) if f.is_dir()), None)
    if folder is None or not rule.__module__.startswith("gradcheck_doctor."):
        return {}
    files = sorted(folder.glob("*.py"), key=lambda p: (p.stem.partition("_")[2], p.stem.startswith("healthy")))
    return {p.name: p.read_text(encoding="utf-8") for p in files}


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
        variant = variant.replace("_", " ")
        lines += ["", f"## {'Sick' if state == 'sick' else 'Cured'}{f' ({variant})' if variant else ''}", "", "```python", source.rstrip("\n"), "```"]
    return "\n".join(lines)
