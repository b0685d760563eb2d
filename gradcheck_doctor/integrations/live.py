"""One line on the terminal while a script trains: health, step, loss, worst finding. It is gone when the script writes or ends."""
from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from gradcheck_doctor.records.findings import ReportData
from gradcheck_doctor.records.recording import Recording

SECONDS = 0.5          # between two drawings
FIRST_CHECK = 8        # optimizer steps before the first judgement; then after each doubling
CLEAR = "\r\x1b[K"


class LiveLine:
    """Draws on `stream`, a terminal.

    Args:
        stream: usually stderr.
        judge: a recording to a report; called at doublings of the step only.
    """

    def __init__(self, stream: TextIO, judge: Callable[[Recording], ReportData]) -> None:
        self.stream, self.judge = stream, judge
        self.at_line_start = True
        self._shown = False
        self._drawn = 0.0
        self._next_check = FIRST_CHECK
        self._health, self._worst = "", ""
        self._owner = os.getpid()

    def step(self, monitor: Any) -> None:
        """Draw again, a few times a second at most."""
        now = time.monotonic()
        if now - self._drawn < SECONDS or not self.at_line_start or os.getpid() != self._owner:
            return
        self._drawn = now
        loss = f"loss {monitor.steps.curve[-1][1]:.4g}" if monitor.steps.curve else ""
        words = " | ".join(w for w in (self._health or "watching", f"step {monitor.step}", loss, self._worst) if w)
        self._write(CLEAR + f"doctor: {words}"[: self._width() - 1])
        self._shown = True

    def observed(self, monitor: Any) -> None:
        """Judge what was seen when the step has doubled."""
        if monitor.step >= self._next_check and os.getpid() == self._owner:
            self._next_check = 2 * monitor.step
            report = self.judge(monitor.recording("run"))
            self._health = report.verdict
            self._worst = next((f"{f.code} {f.rule}" + (f" at {f.module}" if f.module else "") for f in report.findings if f.severity != "info"), "")

    def ended(self, recording: Recording, status: str, merged: bool) -> None:
        """Leave the terminal as if nothing had been there."""
        self.clear()

    def clear(self) -> None:
        """Take the line away."""
        if self._shown and os.getpid() == self._owner:
            self._shown = False
            self._write(CLEAR)

    @contextlib.contextmanager
    def beside_the_script(self) -> Iterator[None]:
        """While open, whatever is written to a terminal through sys.stdout or sys.stderr makes the line vanish first."""
        saved = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (_Yielding(s, self) if s.isatty() else s for s in saved)  # type: ignore[assignment]
        try:
            yield
        finally:
            self.clear()
            sys.stdout, sys.stderr = saved

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):                # the terminal is gone: nobody looks
            self.stream.write(text)
            self.stream.flush()

    def _width(self) -> int:
        try:
            return max(20, os.get_terminal_size(self.stream.fileno()).columns or 80)
        except (OSError, ValueError):
            return 80


class _Yielding:
    """A stream as the script sees it: the same bytes, but our line is out of their way."""

    def __init__(self, stream: Any, line: LiveLine) -> None:
        self._stream, self._line = stream, line

    def write(self, text: str) -> Any:
        self._line.clear()
        if text:
            self._line.at_line_start = text.endswith("\n")
        return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        for text in lines:
            self.write(text)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
