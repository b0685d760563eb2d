"""What repairs come to: one patch a file, as a diff, as edits that a report shows, and as a write that loses nothing."""
from __future__ import annotations

import codecs
import contextlib
import difflib
import io
import os
import stat
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.codec import relative
from gradcheck_doctor.records.findings import Edit, Finding, Fix, ReportData
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.records.sources import decoded, encoded, lines_of, target_file
from gradcheck_doctor.repair import Repair
from gradcheck_doctor.treatments.plan import planned
from gradcheck_doctor.treatments.tree import applied, offsets


@dataclass(frozen=True)
class Patch:
    """The text of one file before and after."""

    file: str
    before: str
    after: str

    @property
    def changed(self) -> bool:
        return self.before != self.after

    def diff(self) -> bytes:
        """Unified diff in the file's own bytes, as git and patch take it; empty when nothing changes."""
        raw = Path(self.file).read_bytes()
        name = relative(self.file)
        old, new = (name, name) if os.path.isabs(name) else (f"a/{name}", f"b/{name}")
        tab = "\t" if " " in name else ""
        rows = difflib.diff_bytes(difflib.unified_diff, _rows(raw), _rows(self._bytes(raw)), os.fsencode(old + tab), os.fsencode(new + tab))
        return b"".join(row if row.endswith(b"\n") else row + b"\n\\ No newline at end of file\n" for row in rows)

    def _bytes(self, raw: bytes) -> bytes:
        """The new content, after a look at the present one.

        Raises:
            TreatmentRefused: the file is not the one that was read, or its encoding has no place for the edit.
        """
        if decoded(raw) != self.before:
            raise TreatmentRefused(f"{self.file} was changed in the meantime; nothing was written, run doctor fix again")
        try:
            return encoded(self.after, mark=raw.startswith(codecs.BOM_UTF8))
        except ValueError as error:
            raise TreatmentRefused(f"the fix can't be written in the encoding of {self.file}: {error}") from error

    def write(self) -> None:
        """Replace the file in one step: a write that is interrupted leaves the old or the new file, never half.

        A symbolic link stays one, what it points to is replaced; mode and owner are kept.

        Raises:
            TreatmentRefused: it is read-only, outside the working directory, was changed since it was read, or the disk refuses.
        """
        path = writable(self.file)
        content = self._bytes(Path(path).read_bytes())
        try:
            _replace(path, content)
        except OSError as error:
            raise TreatmentRefused(f"{self.file} can't be written: {error.strerror or error}; it is as it was, --diff prints the change") from error


def writable(file: str) -> str:
    """The real path of a file that may be replaced.

    Raises:
        TreatmentRefused: it is read-only, or outside the working directory.
    """
    path = os.path.realpath(file)
    if os.path.commonpath([path, os.path.realpath(os.getcwd())]) != os.path.realpath(os.getcwd()):
        points = f" (it points to {path})" if os.path.islink(file) else ""
        raise TreatmentRefused(f"{file} is outside the working directory{points}; run doctor from its project, or use --diff")
    if not os.access(path, os.W_OK):
        raise TreatmentRefused(f"{file} is read-only; make it writable, or use --diff")
    return path


def _rows(raw: bytes) -> list[bytes]:
    """Lines as git and patch count them."""
    return io.BytesIO(raw).readlines()


def _replace(path: str, content: bytes) -> None:
    """All of the content under another name first, safe on the disk, then the name in one step."""
    handle, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", suffix=".doctor", dir=os.path.dirname(path))
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        _like(temporary, path)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _settle(os.path.dirname(path))


def _like(temporary: str, path: str) -> None:
    """Give the new file the old one's mode, and its owner where that is allowed."""
    known = os.stat(path)
    if hasattr(os, "chown"):
        with contextlib.suppress(OSError):
            os.chown(temporary, known.st_uid, known.st_gid)
    os.chmod(temporary, stat.S_IMODE(known.st_mode))


def _settle(folder: str) -> None:
    """Make the new directory entry durable, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def patches(repairs: Iterable[Repair]) -> tuple[list[Patch], list[Repair]]:
    """One patch a file, and the repairs that had to be left for a second call because an earlier one touches the same lines."""
    edits: dict[str, list[Edit]] = {}
    made: dict[str, Patch] = {}
    left: list[Repair] = []
    for repair in repairs:
        key = os.path.realpath(repair.file)
        mine = [e for step in steps(repair) for e in step]
        known = made.get(key)
        if known is None:
            made[key], edits[key] = Patch(repair.file, repair.before, repair.after), mine
            continue
        try:
            made[key] = replace(known, after=applied(known.before, [*edits[key], *mine]))
            edits[key] += mine
        except TreatmentRefused:
            left.append(repair)
    return list(made.values()), left


def steps(repair: Repair) -> list[tuple[Edit, ...]]:
    """Edits of each kept fix at their places in the original text; together they give the new text.

    A later fix was planned on the text that the earlier ones had made, so its places are taken back through theirs. Where they can't be
    told apart, all changes stand at the first fix.
    """
    placed: list[tuple[int, int, str]] = []
    result: list[tuple[Edit, ...]] = []
    text = repair.before
    for _, fix in repair.kept:
        own = [(*offsets(_starts(text), e.span), e.text) for e in dict.fromkeys(fix.edits)]
        back = [(_origin(begin, placed), _origin(end, placed), new) for begin, end, new in own]
        if any(begin is None or end is None for begin, end, _ in back):
            return _whole(repair)
        known = [(begin, end, new) for begin, end, new in back if begin is not None and end is not None]
        placed += known
        result.append(tuple(Edit(_span(repair, begin, end), new) for begin, end, new in known))
        text = _made(repair.before, placed)
    return result if text == repair.after else _whole(repair)


def _starts(text: str) -> list[int]:
    starts = [0]
    for line in lines_of(text):
        starts.append(starts[-1] + len(line))
    return starts


def _made(text: str, placed: Sequence[tuple[int, int, str]]) -> str:
    for begin, end, new in sorted(placed, reverse=True):
        text = text[:begin] + new + text[end:]
    return text


def _origin(offset: int, placed: Sequence[tuple[int, int, str]]) -> int | None:
    """Where an offset of the edited text was in the original; None inside or at the border of an edit."""
    shift = 0
    for begin, end, new in sorted(placed):
        if offset < begin + shift:
            break
        if offset <= begin + shift + len(new):
            return None
        shift += len(new) - (end - begin)
    return offset - shift


def _span(repair: Repair, begin: int, end: int) -> Span:
    starts = _starts(repair.before)
    (line, column), (last, final) = _place(starts, begin), _place(starts, end)
    return Span(repair.file, line, column, last, final)


def _place(starts: Sequence[int], offset: int) -> tuple[int, int]:
    line = max(n for n, start in enumerate(starts) if start <= offset)
    return line + 1, offset - starts[line] + 1


def _whole(repair: Repair) -> list[tuple[Edit, ...]]:
    """The changed lines, all at the first fix."""
    old, new = lines_of(repair.before), lines_of(repair.after)
    starts = _starts(repair.before)
    changed = [Edit(_span(repair, starts[a], starts[b]), "".join(new[c:d]))
               for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes() if kind != "equal"]
    return [tuple(changed), *(() for _ in repair.kept[1:])]


def repaired(report: ReportData, repair: Repair) -> ReportData:
    """The report with what became of its fixes: edits and proof of those that were kept, the reason of those that were not."""
    outcome: dict[tuple[str, ...], Fix] = {}
    for finding, fix in repair.refused:
        outcome[_key(finding, fix)] = replace(fix, edits=(), refusal=fix.refusal or fix.verified.reason or fix.verified.status)
    extra: list[Finding] = []
    known = {_key(f, x) for f in report.findings for x in f.fixes}
    for (finding, fix), edits in zip(repair.kept, steps(repair), strict=True):
        done = replace(fix, edits=edits, refusal="")
        outcome[_key(finding, fix)] = done
        if _key(finding, fix) not in known:
            extra.append(replace(finding, location=edits[0].span if edits else None, fixes=(done,)))
    findings = [replace(f, fixes=_first_kept(outcome.get(_key(f, x), _bare(x)) for x in f.fixes)) for f in report.findings]
    return replace(report, findings=(*findings, *extra))


def _key(finding: Finding, fix: Fix) -> tuple[str, ...]:
    """Recognises a fix in another report of the same model, whose file may have another name."""
    return finding.code, finding.module, finding.op, fix.prescription.id, *fix.prescription.modules


def _bare(fix: Fix) -> Fix:
    """A fix that was neither kept nor tried carries no edit."""
    return replace(fix, edits=())


def _first_kept(fixes: Iterable[Fix]) -> tuple[Fix, ...]:
    return tuple(sorted(fixes, key=lambda fix: not fix.edits))


def with_edits(report: ReportData) -> ReportData:
    """An audit's report with the source edits that are known for its fixes, none of them proven yet."""
    file = target_file(report.target)
    if not file.endswith(".py") or not os.path.isfile(file):
        return report
    fixes: dict[tuple[str, str], list[Fix]] = {}
    for finding, fix in planned(report, file, unsafe=True):
        fixes.setdefault((finding.fingerprint, finding.message), []).append(fix)
    return replace(report, findings=tuple(replace(f, fixes=tuple(fixes.get((f.fingerprint, f.message), f.fixes))) for f in report.findings))
