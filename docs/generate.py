"""Writes docs/rules/*.md from the rules' declarations; --check fails when a page would be empty or a section is missing."""
from __future__ import annotations

import sys
from pathlib import Path

from gradcheck_doctor.rules.page import markdown
from gradcheck_doctor.rules.registry import rules

SECTIONS = ("## What it measures", "## Why it matters", "## When it is harmless", "## Sources", "## Threshold")


def main() -> int:
    folder = Path(__file__).parent / "rules"
    folder.mkdir(exist_ok=True)
    problems = []
    for rule in rules():
        text = markdown(rule)
        problems += [f"{rule.code}: no section {s[3:]!r}" for s in SECTIONS if s not in text]
        (folder / f"{rule.name}.md").write_text(text + "\n", encoding="utf-8")
    index = ["# Rules", "", "| code | name | what it finds |", "|---|---|---|", *(f"| {r.code} | [{r.name}]({r.name}.md) | {r.summary} |" for r in rules())]
    (folder / "index.md").write_text("\n".join(index) + "\n", encoding="utf-8")
    print("\n".join(problems) or f"{len(rules())} rule pages written")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
