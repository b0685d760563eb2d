"""Warnings of torch's functions name the user's line, and appear as often, as without us: our frames in between are not counted."""
from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import torch

OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
MODULE = os.path.join(os.path.dirname(os.path.abspath(torch.__file__)), "nn", "modules", "module.py")
DISPATCH = os.path.join(os.path.dirname(os.path.abspath(torch.__file__)), "overrides.py")


def beyond(frame: FrameType | None, stacklevel: int) -> int:
    """How many frames of ours lie between `frame`, which warns, and the one that it means by `stacklevel`.

    A function of torch that hands itself to a mode is on the stack twice, with ours and torch's dispatch in between: that counts as once. A module
    with hooks, which ours are, calls its forward from a function more.
    """
    place, seen, hidden = 0, 0, False
    inner: CodeType | None = None
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(OURS):
            hidden = True
        elif hidden and code is inner:
            hidden = False
        elif not (hidden and code.co_filename == DISPATCH or code.co_name == "inner" and code.co_filename == MODULE):
            hidden, inner, seen = False, code, seen + 1
            if seen == stacklevel:
                return place - (stacklevel - 1)
        place, frame = place + 1, frame.f_back
    return 0


class Warn:
    """Stands for `warnings.warn` while a step is observed."""

    def __init__(self, original: Callable[..., None]) -> None:
        self.original = original

    def __call__(self, message: Any, category: Any = None, stacklevel: int = 1, source: Any = None, **more: Any) -> None:
        if stacklevel > 1:
            stacklevel += beyond(sys._getframe(1), stacklevel)
        self.original(message, category, stacklevel + 1, source, **more)


class Show:
    """Stands for `warnings._showwarnmsg`: what C++ warns of on a line of ours is said of the line that called."""

    def __init__(self, original: Callable[..., None]) -> None:
        self.original = original

    def __call__(self, message: warnings.WarningMessage) -> None:
        frame: FrameType | None = sys._getframe(1)
        if not message.filename.startswith(OURS):
            self.original(message)
            return
        while frame is not None and frame.f_code.co_filename.startswith((OURS, DISPATCH)):
            frame.f_globals.pop("__warningregistry__", None)                # it counts by the user's line
            frame = frame.f_back
        if frame is None:
            self.original(message)
            return
        place = frame.f_globals
        warnings.warn_explicit(message.message, message.category, frame.f_code.co_filename, frame.f_lineno, place.get("__name__"),
                               place.setdefault("__warningregistry__", {}), place, message.source)


def begin() -> None:
    """Let warnings count as if we weren't there."""
    if not isinstance(warnings.warn, Warn):
        warnings.warn = Warn(warnings.warn)                                       # type: ignore[assignment]
    shown = getattr(warnings, "_showwarnmsg", None)                               # CPython's, from 3.6 on
    if shown is not None and not isinstance(shown, Show):
        warnings._showwarnmsg = Show(shown)                                       # type: ignore[attr-defined]


def end() -> None:
    """Both are what they were, unless somebody else has put something in their place."""
    if isinstance(warnings.warn, Warn):
        warnings.warn = warnings.warn.original                                    # type: ignore[assignment]
    shown = getattr(warnings, "_showwarnmsg", None)
    if isinstance(shown, Show):
        warnings._showwarnmsg = shown.original                                    # type: ignore[attr-defined]
