"""Which process this is, without a system call each time: a child that was forked off must leave the parent's observers alone."""
from __future__ import annotations

import os

number = os.getpid()


def _forked() -> None:
    global number
    number = os.getpid()


os.register_at_fork(after_in_child=_forked)
