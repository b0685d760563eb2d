"""pytest plugin: the fixture `assert_healthy`, and `--doctor`, which lists every model that was audited. Nothing heavy is imported until a test uses it.

With pytest-xdist the audits travel to the controller on the test reports, so the summary is the same with and without -n.
"""
from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest

COLLECTION = "(collection)"     # audits made while test modules are imported; every xdist worker makes them, they are listed once
ORDER = {"sick": 0, "watch": 1, "healthy": 2}
Row = list[str]                 # test, model, verdict, worst finding; lists of strings survive xdist's serialisation


@pytest.fixture
def assert_healthy() -> Callable[..., Any]:
    """`assert_healthy(model, batch, loss=None, fail_on="warning")`: audits and fails the test with the findings."""
    from gradcheck_doctor.session import assert_healthy as check

    return check


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("gradcheck_doctor").addoption(
        "--doctor", action="store_true", help="At the end, list every model that was audited (assert_healthy, doctor.audit) with its verdict and worst finding.")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--doctor"):
        config.pluginmanager.register(Summary(), "gradcheck_doctor_summary")


class Summary:
    """Collects the audits of a session (in a worker: of its tests) and shows them at the end."""

    def __init__(self) -> None:
        self.test = COLLECTION
        self.pending: list[Row] = []
        self.rows: list[Row] = []
        self._token: Any = None

    def pytest_sessionstart(self) -> None:
        from gradcheck_doctor.session import on_audit

        self._token = on_audit.set(self._take)

    def pytest_sessionfinish(self) -> None:
        from gradcheck_doctor.session import on_audit

        if self._token is not None:
            on_audit.reset(self._token)
            self._token = None

    def _take(self, report: Any) -> None:
        self.pending.append([self.test, report.target, report.verdict, _worst(report)])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self.test = item.nodeid
        result = yield
        self.test = COLLECTION
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, Any, Any]:
        report = yield
        report.doctor, self.pending = self.pending, []
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for row in getattr(report, "doctor", ()):
            if row[0] != COLLECTION or row not in self.rows:
                self.rows.append(row)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        from tabulate import tabulate

        rows = sorted(self.rows + self.pending, key=lambda row: ORDER[row[2]])
        terminalreporter.section("doctor")
        if not rows:
            terminalreporter.line("no model was audited")
            return
        table = tabulate([[verdict, model, worst, test] for test, model, verdict, worst in rows], headers=["verdict", "model", "worst finding", "test"])
        for line in table.splitlines():
            terminalreporter.line(line)
        counts = ", ".join(f"{n} {verdict}" for verdict in ORDER if (n := sum(row[2] == verdict for row in rows)))
        terminalreporter.line(f"{len(rows)} audit{'s' if len(rows) != 1 else ''}: {counts}")


def _worst(report: Any) -> str:
    """The first of the gravest findings, which come root cause first."""
    for severity in ("error", "warning", "info"):
        for finding in report.findings:
            if finding.severity == severity:
                return " ".join(part for part in (finding.code, finding.rule, severity, finding.module) if part)
    return "none"
