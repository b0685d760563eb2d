"""All rules: built-ins found by walking this package, third parties' by the entry-point group `gradcheck_doctor.rules`."""
from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable
from typing import TypeGuard

from gradcheck_doctor.errors import UnknownRule
from gradcheck_doctor.packs import complain, described, load
from gradcheck_doctor.rules.base import Rule, Threshold

GROUP = "gradcheck_doctor.rules"


@functools.cache
def rules() -> tuple[type[Rule], ...]:
    """Every rule class, by code."""
    found: dict[str, type[Rule]] = {}
    package = importlib.import_module("gradcheck_doctor.rules")
    for info in pkgutil.walk_packages(package.__path__, "gradcheck_doctor.rules."):
        if not info.ispkg:
            _collect(importlib.import_module(info.name), found)
    own = frozenset(found.values())
    for point, loaded in load(GROUP):
        offered: dict[str, type[Rule]] = {}
        _collect(type("pack", (), {"rule": loaded}) if isinstance(loaded, type) else loaded, offered)
        new = [rule for rule in offered.values() if rule not in own]
        if not new:
            complain(f"{described(point)} holds no rule: no class that derives from gradcheck_doctor.rules.base.Rule and declares a code")
        for rule in new:
            problem = _problem(rule, found)
            if problem:
                complain(f"{described(point)}: the rule {rule.__name__} is left out: {problem}")
            else:
                found[rule.code] = rule
    return tuple(found[code] for code in sorted(found))


def _collect(holder: object, found: dict[str, type[Rule]]) -> None:
    """Rule classes among the attributes of a module (or class)."""
    for value in vars(holder).values():
        if _is_rule(value):
            found[value.code] = value


def _is_rule(value: object) -> TypeGuard[type[Rule]]:
    return isinstance(value, type) and issubclass(value, Rule) and not inspect.isabstract(value) and hasattr(value, "code")


def _problem(rule: type[Rule], known: dict[str, type[Rule]]) -> str:
    """Why a third party's rule cannot be used; "" when it can."""
    missing = [name for name, kind in (("name", str), ("summary", str), ("threshold", Threshold)) if not isinstance(getattr(rule, name, None), kind)]
    if missing:
        return f"it does not declare {', '.join(missing)}"
    if not isinstance(rule.code, str) or not re.fullmatch(r"[A-Z]{1,3}[0-9]{3}", rule.code):
        return f"its code {rule.code!r} is not one to three capital letters and three digits"
    taken = next((r for r in known.values() if r is not rule and (rule.code == r.code or rule.name == r.name)), None)
    return f"{rule.code} {rule.name} is taken by {taken.__module__}.{taken.__name__}" if taken is not None else ""


def find(code_or_name: str) -> type[Rule]:
    """The rule with that code or name.

    Raises:
        UnknownRule: there is none; the message suggests the nearest.
    """
    for rule in rules():
        if code_or_name.upper() == rule.code or code_or_name.lower() == rule.name:
            return rule
    import difflib

    known = [r.code for r in rules()] + [r.name for r in rules()]
    near = difflib.get_close_matches(code_or_name, known, 1, 0.7)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UnknownRule(f"there is no rule {code_or_name!r}.{hint} `doctor rule` lists them all.")


def expand(selectors: Iterable[str]) -> frozenset[str]:
    """Codes that selectors (codes, prefixes such as GD2, names, ALL) stand for.

    Raises:
        UnknownRule: a selector matches nothing.
    """
    chosen: set[str] = set()
    for selector in selectors:
        matching = {r.code for r in rules() if selector.upper() == "ALL" or r.code.startswith(selector.upper()) or r.name == selector.lower()}
        chosen |= matching or {find(selector).code}
    return frozenset(chosen)
