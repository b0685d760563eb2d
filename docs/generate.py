"""Writes docs/rules/*.md from the rules' declarations and the examples in docs/rules/<name>/; fails when a section or half of a pair is missing."""
from __future__ import annotations

import sys
from pathlib import Path

from gradcheck_doctor.rules.page import examples, markdown
from gradcheck_doctor.rules.registry import rules

SECTIONS = ("## What it measures", "## Why it matters", "## When it is harmless", "## Sources", "## Threshold")


def twin(name: str) -> str:
    """healthy_selu.py for sick_selu.py, and the other way round."""
    return name.replace("sick", "healthy") if name.startswith("sick") else name.replace("healthy", "sick")


def main() -> int:
    folder = Path(__file__).parent / "rules"
    folder.mkdir(exist_ok=True)
    problems = []
    for rule in rules():
        shown = examples(rule)
        text = markdown(rule, shown)
        problems += [f"{rule.code}: {name} has no twin" for name in shown if twin(name) not in shown]
        problems += [f"{rule.code}: no section {s[3:]!r}" for s in SECTIONS if s not in text]
        (folder / f"{rule.name}.md").write_text(text + "\n", encoding="utf-8")
    index = ["# Rules", "", "| code | name | what it finds |", "|---|---|---|", *(f"| {r.code} | [{r.name}]({r.name}.md) | {r.summary} |" for r in rules())]
    (folder / "index.md").write_text("\n".join(index) + "\n", encoding="utf-8")
    print("\n".join(problems) or f"{len(rules())} rule pages written")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
