"""Third parties' packs: what installed distributions offer under an entry-point group.

A pack that does not work is said once on stderr and left out; it never stops the doctor.
"""
from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points


def load(group: str) -> Iterator[tuple[EntryPoint, object]]:
    """(entry point, what it names) for every entry point of `group` that can be loaded, by name."""
    for point in sorted(entry_points(group=group), key=lambda p: (p.name, p.value)):
        try:
            yield point, point.load()
        except (Exception, SystemExit) as error:
            complain(f"{described(point)} cannot be loaded and is left out ({type(error).__name__}: {error})")


def described(point: EntryPoint) -> str:
    """The pack in words: entry point, what it names, distribution and version."""
    owner = f" of {point.dist.name} {point.dist.version}" if point.dist is not None else ""
    return f"the pack {point.name!r} ({point.group}: {point.value}){owner}"


@functools.cache
def complain(message: str) -> None:
    """Say it on stderr, once."""
    print(f"doctor: {message}", file=sys.stderr)
