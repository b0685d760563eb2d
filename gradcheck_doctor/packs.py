"""Third parties' packs: what installed distributions offer under an entry-point group.

A pack that does not work is said once on stderr and left out; it never stops the doctor.
"""
from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def load(group: str) -> Iterator[tuple[EntryPoint, object]]:
    """(entry point, what it names) for every entry point of `group` that can be loaded, by name."""
    if not offered(group):
        return
    from importlib.metadata import entry_points

    for point in sorted(entry_points(group=group), key=lambda p: (p.name, p.value)):
        try:
            yield point, point.load()
        except (Exception, SystemExit) as error:
            complain(f"{described(point)} cannot be loaded and is left out ({type(error).__name__}: {error})")


def offered(group: str) -> bool:
    """Whether some installed distribution may offer something under `group`.

    Mostly none does. To find that out by reading the files takes a few milliseconds; to import what reads them properly takes 40.
    """
    if any(finder is not PathFinder and hasattr(finder, "find_distributions") for finder in sys.meta_path):
        return True
    for folder in sys.path:
        try:
            with os.scandir(folder or ".") as entries:
                names = [entry.path for entry in entries if entry.name.endswith((".dist-info", ".egg-info"))]
        except NotADirectoryError:
            return True                                             # an archive: left to importlib.metadata
        except OSError:
            continue
        for name in names:
            try:
                with open(os.path.join(name, "entry_points.txt"), "rb") as file:     # to import pathlib takes longer than all this
                    if group.encode() in file.read():
                        return True
            except OSError:
                continue
    return False


def described(point: EntryPoint) -> str:
    """The pack in words: entry point, what it names, distribution and version."""
    owner = f" of {point.dist.name} {point.dist.version}" if point.dist is not None else ""
    return f"the pack {point.name!r} ({point.group}: {point.value}){owner}"


@functools.cache
def complain(message: str) -> None:
    """Say it on stderr, once."""
    print(f"doctor: {message}", file=sys.stderr)
