"""Imports of a command that needs torch."""
from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Around the first import of torch: what it makes lasts as long as the process, so the garbage collector looks through it neither now nor later.

    That is a third of a second of `import torch`, and part of every later full collection. What comes after is collected as ever.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
