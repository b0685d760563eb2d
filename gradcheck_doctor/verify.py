"""Proof: an edited file is run (or probed) again in a fresh process, and kept only if the figures say that it helped."""
from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from gradcheck_doctor.records.codec import from_json
from gradcheck_doctor.records.edited import environment
from gradcheck_doctor.records.findings import Finding, ReportData, Verified
from gradcheck_doctor.records.sources import encoded

SECONDS = 170          # for one run of a script
BUDGET = 200           # for all runs of one repair: no new one begins after that
LEARNED = 0.9          # share of the first loss that is gone where a run has learned its data
SHORT = 32             # losses; with fewer, chance decides as much as a fix
MARGIN = 0.1           # share of the first loss, and of a constant guess's, by which a run has to end lower where the control ended in no number
TELLING = 0.02         # share of the first loss below which two last losses are the same
#: What these protect does not show in the loss of the training: they have to leave it as it is, and the finding has to be gone.
NEUTRAL = frozenset({"eval-batchnorm", "batchnorm-momentum", "dropout-training"})
LOSS_CHANGING = frozenset({"replace-loss", "minimise-loss", "negate-loss", "remove-output-activation", "log-softmax", "mean-reduction", "divide-loss", "match-shapes"})


@dataclass(frozen=True)
class Judgement:
    """How a report looks: fewer is better, then a lower last loss."""

    report: ReportData
    errors: int
    serious: int
    last_loss: float
    progress: float

    @property
    def rank(self) -> tuple[int, int, float]:
        return (self.errors, self.serious, self.last_loss)


def judge(report: ReportData) -> Judgement:
    """Read the figures of a report."""
    losses = [y for _, y in report.curves.get("loss", ())]
    finite = [v for v in losses if math.isfinite(v)]
    size = max(1, len(losses) // 10)
    last = median(losses[-size:]) if losses else math.nan
    first = median(finite[: max(1, size // 2)]) if finite else math.nan
    progress = (first - last) / abs(first) if math.isfinite(last) and math.isfinite(first) and first else -math.inf
    return Judgement(report, report.count("error"), report.count("error") + report.count("warning"), last if math.isfinite(last) else math.inf, progress)


def measure(text: str, file: str, *, run: bool, expression: str = "", arguments: Sequence[str] = (), options: Sequence[str] = (),
            script: str = "", errors: list[str] | None = None) -> ReportData | None:
    """The report of the edited text, from a fresh process; None when it crashed or did not end.

    Args:
        text: of `file`.
        run: run it, else probe it.
        expression: the model in it, for a probe.
        arguments: of the script that is run.
        options: of the probe.
        script: what is run, where that is another file, which imports `file`.
        errors: gets what was said on stderr, or how long was waited, where it crashed or did not end.
    """
    said = errors if errors is not None else []
    with _beside(file, text, script) as (path, variables), tempfile.TemporaryDirectory() as scratch:
        output = os.path.join(scratch, "report.json")
        target = [path, *arguments] if run else [f"{path}:{expression}" if expression else path]
        command = [sys.executable, "-m", "gradcheck_doctor", "run" if run else "audit", "--fail-on", "never", "--format", "json", "--output", output,
                   *options, *target]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, env={**os.environ, **variables})
        except subprocess.TimeoutExpired:
            said.append(f"no end within {SECONDS} s")
            return None
        if done.returncode != 0 or not os.path.exists(output):
            said.append(done.stderr.replace(path, script or file).strip())
            return None
        data = json.loads(Path(output).read_text(encoding="utf-8"))
        return from_json(data["reports"][0] if "reports" in data else data)


@contextmanager
def _beside(file: str, text: str, script: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(what to run, environment): the text as a file next to the original, so that what it imports is found; or the script that is to take it for `file`."""
    folder = os.path.dirname(os.path.abspath(file))
    try:
        handle, path = tempfile.mkstemp(prefix=f"doctor_{Path(file).stem}_", suffix=".py", dir=folder)
    except OSError:
        handle, path = tempfile.mkstemp(prefix=f"doctor_{Path(file).stem}_", suffix=".py")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(encoded(text))
        yield (script, environment({file: path})) if script else (path, {})
    finally:
        os.unlink(path)


def verdict(finding: Finding, treatment: str, before: Judgement, after: Judgement | None, *, run: bool) -> Verified:
    """Improved only if the finding's own rule is quiet, no new error appeared and the loss is no worse than the untreated control's."""
    if after is None:
        return Verified("worse", {}, {}, "the edited file crashed or did not end")
    figures = _figures(finding, before), _figures(finding, after)
    lasting = ("error", "warning") if treatment in NEUTRAL else ("error",)
    still = any(f.rule == finding.rule and f.severity in lasting for f in after.report.findings)
    known = {f.rule for f in before.report.findings if f.severity != "info"}
    new = [f.rule for f in after.report.findings if f.severity == "error" and f.rule not in known]
    if new:
        return Verified("worse", *figures, f"new: {', '.join(new)}")
    if run and before.report.curves.get("loss") and not after.report.curves.get("loss"):
        return Verified("unmeasurable", *figures, "no loss was seen")
    if run and not (playing(finding) and math.isfinite(after.last_loss)) and not _loss_better(treatment, before, after):
        return Verified("no-effect", *figures, _too_little(treatment, before, after))
    if still or after.serious > before.serious:
        return Verified("no-effect", *figures, f"{finding.rule} is still found" if still else "more findings than before")
    if not run and after.errors >= before.errors and after.serious >= before.serious:
        return Verified("no-effect", *figures, "no finding fewer")
    return Verified("improved", *figures)


def playing(finding: Finding) -> bool:
    """Several models were found to play against each other: the loss of one is no measure of them all."""
    return bool(finding.evidence.get("taking_turns"))


def _figures(finding: Finding, judgement: Judgement) -> dict[str, float]:
    """What a fix is judged by; the finding's own statistic stands under the name of its rule."""
    own = judgement.report.readings.get(finding.rule)
    return {**({finding.rule: own} if own is not None else {}), "errors": float(judgement.errors), "findings": float(judgement.serious),
            "last_loss": judgement.last_loss, "progress": judgement.progress}


def beaten(treatment: str, before: Judgement, after: Judgement, controls: Sequence[Judgement | None]) -> bool:
    """The median of treatments drawn blindly does clearly better: the fix has less than nine tenths of their gain.

    A control that crashed gains nothing; a fix that changes the loss is compared by the share of the loss that is gone, in which a loss below 0 counts
    for nothing; one that is not about the loss is not compared by it.
    """
    if not controls or treatment in NEUTRAL:
        return False
    changed = treatment in LOSS_CHANGING

    def score(judgement: Judgement | None) -> float:
        if judgement is None:
            return -math.inf
        if not changed:
            return -judgement.last_loss
        return judgement.progress if judgement.progress <= 1.0 else 0.0

    usual, start = median(score(c) for c in controls), max(score(before), -1e30)
    return math.isfinite(usual) and usual > start and score(after) < start + 0.9 * (usual - start)


def _loss_better(treatment: str, before: Judgement, after: Judgement) -> bool:
    """Clearly lower than the control's; a changed loss function is judged by the share that is gone."""
    if treatment in LOSS_CHANGING:
        return after.progress > _progress_needed(before)
    if not math.isfinite(before.last_loss):
        return math.isfinite(after.last_loss) and _learns(after)
    limit = _loss_needed(treatment, before, after)
    return after.last_loss <= limit if treatment in NEUTRAL else after.last_loss < limit


def _progress_needed(before: Judgement) -> float:
    """Share of the first loss; a loss below 0, where that share is past 1, is no measure."""
    return 0.3 if before.progress > 1.0 else max(0.3, before.progress)


def _loss_needed(treatment: str, before: Judgement, after: Judgement) -> float:
    """Where the loss has to end.

    A new start that leaves fewer errors has to be no worse: oversized weights learn a training set by heart as well, so two runs that both end
    near 0 differ by less than the loss they began with can tell.
    """
    if treatment in NEUTRAL:
        return before.last_loss + TELLING * _first_loss(after)
    slack = 0.0
    if treatment == "initialise" and after.errors < before.errors and LEARNED <= after.progress < 1.0:
        slack = TELLING * _first_loss(after)
    return max(before.last_loss - 0.02 * abs(before.last_loss), before.last_loss + slack if slack else -math.inf)


def _too_little(treatment: str, before: Judgement, after: Judgement) -> str:
    """What the loss did, and what it would have had to do."""
    steps = len(after.report.curves.get("loss", ()))
    short = f"; {steps} steps show little, a longer run may show more" if steps < SHORT else ""
    if treatment in LOSS_CHANGING:
        gone = [f"{judgement.progress:.0%}" if math.isfinite(judgement.progress) else "nothing" for judgement in (after, before)]
        return f"{gone[0]} of the first loss is gone, without the change {gone[1]}; needed: more than {_progress_needed(before):.0%}{short}"
    ends = f"the loss ends at {after.last_loss:.4g}, without the change at {before.last_loss:.4g}"
    if not math.isfinite(before.last_loss):
        return ends
    return f"{ends}; needed: {'at most' if treatment in NEUTRAL else 'below'} {_loss_needed(treatment, before, after):.4g}{short}"


def _learns(judgement: Judgement) -> bool:
    """It ends clearly below its own first loss, and below that of a constant guess where the report knows how far above it the first one was."""
    above = judgement.report.readings.get("initial-loss", 0.0)
    guess = _first_loss(judgement) / above if above > 1.0 else math.inf
    return judgement.progress > MARGIN and judgement.last_loss < (1.0 - MARGIN) * guess


def _first_loss(judgement: Judgement) -> float:
    return next((abs(y) for _, y in judgement.report.curves.get("loss", ()) if math.isfinite(y)), 0.0)
