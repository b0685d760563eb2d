"""doctor fix: plan edits, prove each in a fresh process, keep what helps."""
from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Fix, ReportData
from gradcheck_doctor.records.sources import encoded, target_file
from gradcheck_doctor.treatments.menu import blind
from gradcheck_doctor.treatments.plan import planned
from gradcheck_doctor.treatments.tree import applied
from gradcheck_doctor.treatments.tree import read as read_tree
from gradcheck_doctor.verify import BUDGET, Judgement, beaten, judge, measure, playing, verdict

TRIALS = 9             # candidates measured in one round
ROUNDS = 2             # fixes that build on each other
ELSEWHERE = "it needs an edit in "
CONTROLS = 3           # other treatments that a fix is compared with; drawn blindly where fewer were tried


@dataclass
class Repair:
    """What came of it: texts by file, what was kept, what was refused and why."""

    file: str
    before: str
    after: str
    kept: list[tuple[Finding, Fix]] = field(default_factory=list)
    refused: list[tuple[Finding, Fix]] = field(default_factory=list)
    unknown: list[Finding] = field(default_factory=list)    # causes for which no rule prescribes anything
    end: ReportData | None = None          # what the last measurement of the kept text found; None when nothing was measured

    @property
    def changed(self) -> bool:
        return self.before != self.after


def repair(report: ReportData, file: str, *, unsafe: bool, verify: bool, expression: str = "", arguments: Sequence[str] = (),
           wanted: Callable[[Finding], bool] = lambda finding: True, options: Sequence[str] = ()) -> Repair:
    """Cure the serious findings of `report` in `file` that are `wanted`, the root cause first; `options` are those of the audit that found them.

    The cures of a run may be in files that the script imports: the first file in which one helps is edited.

    Raises:
        TreatmentRefused: the file can't be edited at all.
    """
    judged, run = _restricted(report, wanted), report.kind == "run"
    refused: list[tuple[Finding, Fix]] = []
    unknown = [f for f in report.causes if f.severity != "info" and wanted(f) and not f.fixes]
    for home in _homes(judged, file, unsafe) if run else [file]:
        script = "" if _same(home, file) else file
        result = _repaired(judged, Trial(home, unsafe, verify, run, expression, arguments, () if run else options, script), wanted)
        if result.kept:
            return result
        refused += result.refused
    result.refused, result.unknown = _telling(refused), unknown
    return result


def _homes(report: ReportData, file: str, unsafe: bool) -> list[str]:
    """The files of the user's in which the cures are made, that of the first one first; the script itself at last."""
    found: dict[str, None] = {}
    for _, fix in planned(_moved(report, file), file, unsafe=unsafe):
        places = {os.path.abspath(e.span.file) for e in fix.edits}
        found |= dict.fromkeys(p for p in places if len(places) == 1 and "site-packages" not in p and os.path.isfile(p))
    return [file if _same(p, file) else os.path.relpath(p) for p in dict.fromkeys([*found, os.path.abspath(file)])]


def _telling(refused: list[tuple[Finding, Fix]]) -> list[tuple[Finding, Fix]]:
    """Of what was tried in several files, what is known best: a measurement, else the reason that is not the place."""
    best: dict[tuple[str, str], tuple[Finding, Fix]] = {}
    for finding, fix in refused:
        key = finding.fingerprint, fix.prescription.title
        if key not in best or fix.verified.reason or best[key][1].refusal.startswith(ELSEWHERE):
            best[key] = finding, fix
    return list(best.values())


def _repaired(report: ReportData, trial: Trial, wanted: Callable[[Finding], bool]) -> Repair:
    """Rounds of cures in one file."""
    text = read_tree(trial.file).text
    result = Repair(trial.file, text, text)
    if not trial.verify:
        return _unproven(result, report, trial)
    current = judge(report)
    for _ in range(ROUNDS):
        step = _round(result, current, trial)
        if step is None:
            break
        finding, fix, new, after = step
        result.after = new
        result.kept.append((finding, fix))
        result.end = after.report
        if after.serious == 0:
            break
        current = replace(after, report=_restricted(after.report, wanted))
    return result


def _unproven(result: Repair, report: ReportData, trial: Trial) -> Repair:
    """Nothing is measured: of each cause the first cure that can be written, all of them together."""
    report = _moved(report, trial.file, trial)
    done = set(report.explained)
    edits: list[Edit] = []
    for finding, fix in planned(report, trial.file, unsafe=trial.unsafe):
        if finding.fingerprint in done:
            continue
        if not fix.edits or any(not _same(e.span.file, trial.file) for e in fix.edits):
            _text(result, finding, fix, trial.file)                 # says why not
            continue
        wanted = [*edits, *(e for e in (_at(e, trial.file) for e in fix.edits) if e not in edits)]
        try:
            text = applied(result.before, wanted)
        except TreatmentRefused as error:
            result.refused.append((finding, replace(fix, refusal=str(error), edits=())))
            continue
        done.add(finding.fingerprint)
        if text != result.after:
            result.after, edits = text, wanted
            result.kept.append((finding, fix))
    return result


def _restricted(report: ReportData, wanted: Callable[[Finding], bool]) -> ReportData:
    """The report without the cures of findings that are not to be touched; the findings still count in the proof."""
    return replace(report, findings=tuple(f if wanted(f) else replace(f, fixes=()) for f in report.findings))


def _round(result: Repair, before: Judgement, trial: Trial) -> tuple[Finding, Fix, str, Judgement] | None:
    """The best proven candidate of one round, None when none helps."""
    best: tuple[Finding, Fix, str, Judgement] | None = None
    others: list[Judgement | None] = []
    with _edited(result) as current_file:
        report, seen = _moved(before.report, current_file, trial), set[str]()
        for finding, fix in _with_joint(planned(report, current_file, unsafe=trial.unsafe)):
            if best is not None and best[3].serious == 0 and (finding.rule, fix.prescription.treatment) != (best[0].rule, best[1].prescription.treatment):
                break                                               # all is well; only other doses of the same cure may do better
            if best is not None and set(fix.edits) < set(best[1].edits):
                continue                                            # a part of what is proven
            text = _text(result, finding, fix, current_file)
            if text is None or text == result.after or text in seen or len(seen) >= TRIALS or trial.late:
                continue
            seen.add(text)
            after = trial.measured(text)
            proof = verdict(finding, fix.prescription.treatment, before, after, run=trial.run)
            fix = replace(fix, verified=proof)
            if proof.status != "improved" or after is None:
                result.refused.append((finding, fix))
                others.append(after)
                continue
            if best is None or after.rank < best[3].rank:
                others += [best[3]] if best is not None else []
                best = (finding, fix, text, after)
            else:
                others.append(after)
        if best is None or not trial.run:
            return best
        others += _controls(result, report, current_file, trial, CONTROLS - len(others), seen)
    if not playing(best[0]) and beaten(best[1].prescription.treatment, before, best[3], others):
        proof = replace(best[1].verified, status="no-effect", reason="treatments drawn at random from the same menu do better")
        result.refused.append((best[0], replace(best[1], verified=proof)))
        return None
    return best


def _with_joint(candidates: Iterable[tuple[Finding, Fix]]) -> list[tuple[Finding, Fix]]:
    """Where a rule prescribes the same for several findings, first the cure of all of them at once: each alone would leave the others' fault."""
    groups: dict[tuple[str, str, str], list[tuple[Finding, Fix]]] = {}
    for finding, fix in candidates:
        key = finding.rule, fix.prescription.treatment, repr(sorted(fix.prescription.arguments.items()))
        groups.setdefault(key if fix.edits else (finding.fingerprint, *key[1:]), []).append((finding, fix))
    result: list[tuple[Finding, Fix]] = []
    later: list[tuple[Finding, Fix]] = []
    for group in groups.values():
        finding, fix = group[0]
        edits = tuple(dict.fromkeys(e for _, other in group for e in other.edits))
        findings = len({other.fingerprint for other, _ in group})
        if findings > 1 and len(edits) > len(fix.edits):
            joint = replace(fix.prescription, title=f"{fix.prescription.title} ({findings} findings at once)")
            result.append((finding, replace(fix, prescription=joint, edits=edits)))
            later += group
        else:
            result += group
    return result + later


def _text(result: Repair, finding: Finding, fix: Fix, file: str) -> str | None:
    """The file with a fix applied; None, and a refusal on record, when there is no edit or it can't be made."""
    elsewhere = [e for e in fix.edits if not _same(e.span.file, file)]
    if elsewhere:
        fix = replace(fix, refusal=f"{ELSEWHERE}{os.path.relpath(elsewhere[0].span.file)}", edits=())
    if not fix.edits:
        result.refused.append((finding, fix))
        return None
    try:
        return applied(result.after, [_at(e, file) for e in fix.edits])
    except TreatmentRefused as error:
        result.refused.append((finding, replace(fix, refusal=str(error), edits=())))
        return None


def _controls(result: Repair, report: ReportData, file: str, trial: Trial, wanted: int, seen: set[str]) -> list[Judgement | None]:
    """`wanted` treatments drawn blindly from the menu, measured like the others."""
    found: list[Judgement | None] = []
    for _, edits in blind(report, file):
        if len(found) >= wanted or trial.late:
            break
        try:
            text = applied(result.after, [_at(e, file) for e in edits])
        except TreatmentRefused:
            continue
        if text not in seen and text != result.after:
            seen.add(text)
            found.append(trial.measured(text))
    return found


@dataclass
class Trial:
    """How candidates are measured, and how long that may go on."""

    file: str
    unsafe: bool
    verify: bool
    run: bool
    expression: str
    arguments: Sequence[str]
    options: Sequence[str]
    script: str = ""                # that is run, where it is another file than the one that is edited
    started: float = field(default_factory=time.monotonic)
    longest: float = 0.0

    @property
    def late(self) -> bool:
        """Another measurement would not end within the budget."""
        return time.monotonic() - self.started + self.longest > BUDGET

    def measured(self, text: str) -> Judgement | None:
        """The judgement of a fresh process on the edited text; None when it crashed."""
        begin = time.monotonic()
        report = measure(text, self.file, run=self.run, expression=self.expression, arguments=self.arguments, options=self.options,
                         script=self.script)
        self.longest = max(self.longest, time.monotonic() - begin)
        if report is None:
            return None
        report = _moved(report, self.file, self)
        return judge(report if self.script else replace(report, target=self.file))      # about the file, not about the copy that ran


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


def _moved(report: ReportData, file: str, trial: Trial | None = None) -> ReportData:
    """The report with spans of the measured copy (or of the imported file that is edited) pointing at `file`."""
    from gradcheck_doctor.records.sites import Span

    own = trial.file if trial is not None and trial.script else target_file(report.target)
    there = os.path.isfile(own)                                     # of a copy that is gone only the name is left, which no other file has

    def mine(name: str) -> bool:
        return _same(name, own) if there else os.path.basename(name) == os.path.basename(own)

    def move(span: Span | None) -> Span | None:
        return replace(span, file=file) if span is not None and mine(span.file) else span

    def fix(old: Fix) -> Fix:
        return replace(old, prescription=replace(old.prescription, span=move(old.prescription.span)))

    moved = [replace(f, location=move(f.location), fixes=tuple(fix(x) for x in f.fixes), known_as="") for f in report.findings]
    now = {old.fingerprint: new.fingerprint for old, new in zip(report.findings, moved, strict=True)}
    findings = tuple(replace(f, related=tuple(now.get(fingerprint, fingerprint) for fingerprint in f.related)) for f in moved)
    layers = tuple(replace(row, location=move(row.location), weight=_weight(row.weight, mine, file)) for row in report.layers)
    return replace(report, findings=findings, layers=layers)


def _weight(weight: object, mine: Callable[[str], bool], file: str) -> dict[str, object]:
    values = dict(weight) if isinstance(weight, dict) else {}
    place = values.get("init")
    if isinstance(place, dict) and mine(str(place.get("file"))):
        values["init"] = {**place, "file": file}
    return values


def _same(a: str, b: str) -> bool:
    return os.path.realpath(a) == os.path.realpath(b)


def _at(edit: Edit, file: str) -> Edit:
    return replace(edit, span=replace(edit.span, file=file))
