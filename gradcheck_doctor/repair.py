"""doctor fix: plan edits, prove each in a fresh process, keep what helps."""
from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Fix, ReportData
from gradcheck_doctor.records.sources import encoded
from gradcheck_doctor.treatments.plan import planned
from gradcheck_doctor.treatments.tree import applied
from gradcheck_doctor.treatments.tree import read as read_tree
from gradcheck_doctor.verify import Judgement, judge, measure, verdict

TRIALS = 9             # candidates measured in one round
ROUNDS = 2             # fixes that build on each other


@dataclass
class Repair:
    """What came of it: texts by file, what was kept, what was refused and why."""

    file: str
    before: str
    after: str
    kept: list[tuple[Finding, Fix]] = field(default_factory=list)
    refused: list[tuple[Finding, Fix]] = field(default_factory=list)
    remaining: int = 0
    end: ReportData | None = None          # what the last measurement of the kept text found; None when nothing was measured

    @property
    def changed(self) -> bool:
        return self.before != self.after


def repair(report: ReportData, file: str, *, unsafe: bool, verify: bool, expression: str = "", arguments: Sequence[str] = (),
           wanted: Callable[[Finding], bool] = lambda finding: True) -> Repair:
    """Cure the serious findings of `report` in `file` that are `wanted`, the root cause first.

    Raises:
        TreatmentRefused: the file can't be edited at all.
    """
    text = read_tree(file).text
    result = Repair(file, text, text)
    current = judge(_restricted(report, wanted))
    for _ in range(ROUNDS if verify else 1):
        step = _round(result, current, unsafe, verify, expression, arguments)
        if step is None:
            break
        finding, fix, new, after = step
        result.after = new
        result.kept.append((finding, fix))
        if after is None or after.serious == 0:
            current, result.end = after or current, after.report if after else None
            break
        current, result.end = replace(after, report=_restricted(after.report, wanted)), after.report
    result.remaining = current.serious if verify else 0
    return result


def _restricted(report: ReportData, wanted: Callable[[Finding], bool]) -> ReportData:
    """The report without the cures of findings that are not to be touched; the findings still count in the proof."""
    return replace(report, findings=tuple(f if wanted(f) else replace(f, fixes=()) for f in report.findings))


def _round(result: Repair, before: Judgement, unsafe: bool, verify: bool, expression: str,
           arguments: Sequence[str]) -> tuple[Finding, Fix, str, Judgement | None] | None:
    """The best proven candidate of one round, None when none helps."""
    run = before.report.kind == "run"
    best: tuple[Finding, Fix, str, Judgement] | None = None
    with _edited(result) as current_file:
        seen: set[str] = set()
        for finding, fix in planned(_moved(before.report, current_file), current_file, unsafe=unsafe):
            if not fix.edits:
                result.refused.append((finding, fix))
                continue
            try:
                text = applied(result.after, [_at(e, current_file) for e in fix.edits if _same(e.span.file, current_file)])
            except TreatmentRefused as error:
                result.refused.append((finding, replace(fix, refusal=str(error), edits=())))
                continue
            if text == result.after or text in seen or len(seen) >= TRIALS or any(not _same(e.span.file, current_file) for e in fix.edits):
                continue
            seen.add(text)
            if not verify:
                return finding, fix, text, None
            measured = measure(text, result.file, run=run, expression=expression, arguments=arguments)
            after = judge(measured) if measured is not None else None
            proof = verdict(finding, fix.prescription.treatment, before, after, run=run)
            fix = replace(fix, verified=proof)
            if proof.status != "improved" or after is None:
                result.refused.append((finding, fix))
                continue
            if best is None or after.rank < best[3].rank:
                best = (finding, fix, text, after)
            if after.serious == 0:
                break
    return best


class _edited:
    """The current text as a real file, so that spans and sources agree while candidates are planned."""

    def __init__(self, result: Repair) -> None:
        self.result, self.path = result, ""

    def __enter__(self) -> str:
        if not self.result.changed:
            return self.result.file
        handle, self.path = tempfile.mkstemp(suffix=".py")
        with os.fdopen(handle, "wb") as stream:
            stream.write(encoded(self.result.after))
        return self.path

    def __exit__(self, *_: object) -> None:
        if self.path:
            os.unlink(self.path)


def _moved(report: ReportData, file: str) -> ReportData:
    """The report with spans of the measured copy pointing at `file`."""
    from gradcheck_doctor.records.sites import Span

    own = os.path.basename(report.target.partition(":")[0])

    def move(span: Span | None) -> Span | None:
        return replace(span, file=file) if span is not None and os.path.basename(span.file) == own else span

    def fix(old: Fix) -> Fix:
        return replace(old, prescription=replace(old.prescription, span=move(old.prescription.span)))

    findings = tuple(replace(f, location=move(f.location), fixes=tuple(fix(x) for x in f.fixes)) for f in report.findings)
    layers = tuple(replace(row, location=move(row.location), weight=_weight(row.weight, own, file)) for row in report.layers)
    return replace(report, findings=findings, layers=layers)


def _weight(weight: object, own: str, file: str) -> dict[str, object]:
    values = dict(weight) if isinstance(weight, dict) else {}
    place = values.get("init")
    if isinstance(place, dict) and os.path.basename(str(place.get("file"))) == own:
        values["init"] = {**place, "file": file}
    return values


def _same(a: str, b: str) -> bool:
    return os.path.abspath(a) == os.path.abspath(b)


def _at(edit: Edit, file: str) -> Edit:
    return replace(edit, span=replace(edit.span, file=file))
