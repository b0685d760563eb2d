"""What Python users hold in their hands."""
from __future__ import annotations

import json
import weakref
from typing import Any

from gradcheck_doctor.records.codec import to_json
from gradcheck_doctor.records.findings import SEVERITIES, Finding, ReportData
from gradcheck_doctor.report.render import Style, format_of, render


class Report:
    """A report: print it, show it in a notebook, write it, assert on it.

    Attributes:
        data: everything in it, as frozen records.
        recording: what it was concluded from, None when read from a file.
    """

    def __init__(self, data: ReportData, recording: Any = None, model: Any = None) -> None:
        self.data, self.recording = data, recording
        self._model = weakref.ref(model) if model is not None else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}                    # a copy is about another model

    def is_about(self, model: Any) -> bool:
        """Whether this very object was audited."""
        return self._model is not None and self._model() is model

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, the one to act on first."""
        return self.data.findings

    @property
    def verdict(self) -> str:
        """sick (an error), watch (a warning) or healthy."""
        return self.data.verdict

    def has(self, rule: str) -> bool:
        """Whether a finding has that code or name."""
        return any(rule in (f.code, f.rule) for f in self.findings)

    def text(self, *, verbose: bool = False, colour: bool = False) -> str:
        return render(self.data, "text", Style({}, verbose=verbose, colour=colour))

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<Report {self.data.target}: {self.data.headline}, {len(self.findings)} findings>"

    def _repr_html_(self) -> str:
        from gradcheck_doctor.report.html import fragment

        return fragment(self.data)

    def to_json(self, path: str | None = None) -> dict[str, Any]:
        """The report as the contract's JSON; also written to `path` when given."""
        data = to_json(self.data)
        if path is not None:
            with open(path, "w", encoding="utf-8") as file:
                json.dump(data, file, indent=1, allow_nan=False, ensure_ascii=False)
        return data

    def write(self, path: str) -> None:
        """Write the report to a file in the format of its suffix (.html, .json, .md, .sarif, ...); text for any other."""
        text = render(self.data, format_of(path) or "text", Style({}))
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(text + "\n")

    def assert_healthy(self, fail_on: str = "warning") -> Report:
        """Raise AssertionError with the findings when one is at or above `fail_on`; returns itself."""
        __tracebackhide__ = True
        if fail_on not in (*SEVERITIES, "never"):
            raise ValueError(f"fail_on must be one of {', '.join(SEVERITIES)} or never, not {fail_on!r}")
        if fail_on != "never" and any(SEVERITIES.index(f.severity) >= SEVERITIES.index(fail_on) for f in self.findings):
            raise AssertionError("the model is not healthy:\n\n" + render(self.data, "text", Style({}, quiet=True)))
        return self


class RankReport(Report):
    """What a rank other than 0 holds: its own findings, for code that looks at them; printed it is empty, since rank 0 reports on all."""

    def text(self, *, verbose: bool = False, colour: bool = False) -> str:
        return ""

    def _repr_html_(self) -> str:
        return ""
