"""What was done to a live model: changes with their inverse, refusals with their reason."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Verified
from gradcheck_doctor.treatments.live_journal import Journal


@dataclass
class Change:
    """One treatment that was applied.

    Attributes:
        title: what was done, in a few words.
        treatment: its name as `only=` takes it: initialise-he-normal, insert-norm, drop-bias, ...
        modules: paths it acted on, as they were named before.
        rule: code of the finding it answers, empty when it was asked for by name.
        notes: what the user should know, such as names in the state dict that changed.
        renamed: old name in the state dict -> new name.
        verified: figures before and after, where a batch was given.
    """

    title: str
    treatment: str
    modules: tuple[str, ...] = ()
    rule: str = ""
    notes: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    verified: Verified = field(default_factory=Verified)
    journal: Journal = field(default_factory=Journal, repr=False)
    undone: bool = False
    siblings: list[Change] = field(default_factory=list, repr=False, compare=False)

    @property
    def module(self) -> str:
        """The first module it acted on."""
        return self.modules[0] if self.modules else ""

    def undo(self) -> None:
        """Put back what was there: values, module objects, optimizer groups and state, random state, bit for bit.

        Undoing twice does nothing. Training in between is not undone, except of what this change had touched.

        Raises:
            TreatmentRefused: a later change builds on this one.
        """
        if self.undone:
            return
        place = next((i for i, c in enumerate(self.siblings) if c is self), len(self.siblings))
        above = [c.title for c in self.siblings[place + 1:] if not c.undone and c.journal.touched & self.journal.touched]
        if above:
            raise TreatmentRefused(f"undo {above[-1]!r} first: it changed the same place after {self.title!r}")
        self.journal.undo()
        self.undone = True

    def __str__(self) -> str:
        figures = [f"{k} {before:.3g} -> {self.verified.after[k]:.3g}" for k, before in self.verified.before.items() if k in self.verified.after]
        lines = [f"{self.title} [{self.treatment}]" + (" (undone)" if self.undone else "") + (": " + ", ".join(figures) if figures else "")]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


@dataclass(frozen=True)
class Refusal:
    """A treatment that was not applied, or not kept, and why."""

    title: str
    treatment: str
    reason: str
    modules: tuple[str, ...] = ()
    rule: str = ""
    verified: Verified = field(default_factory=Verified)

    def __str__(self) -> str:
        return f"not done: {self.title} [{self.treatment}]: {self.reason}"


class Treatments(Sequence[Change]):
    """The changes in the order they were made; `refusals` holds what was not done; `undo()` takes everything back.

    Attributes:
        before, after: the reports measured before and after, None where no batch was given.
    """

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.refusals: list[Refusal] = []
        self.before: Any = None
        self.after: Any = None

    def add(self, change: Change) -> None:
        """Append a change; it learns which later ones build on it."""
        change.siblings = self.changes
        self.changes.append(change)

    def undo(self) -> None:
        """Undo all changes, the last one first."""
        for change in reversed(self.changes):
            change.undo()

    @overload
    def __getitem__(self, index: int) -> Change: ...

    @overload
    def __getitem__(self, index: slice) -> list[Change]: ...

    def __getitem__(self, index: int | slice) -> Change | list[Change]:
        return self.changes[index]

    def __len__(self) -> int:
        return len(self.changes)

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __str__(self) -> str:
        return "\n".join(str(x) for x in (*self.changes, *self.refusals)) or "nothing to treat"

    def __repr__(self) -> str:
        return f"<Treatments: {len(self.changes)} done, {len(self.refusals)} not done>"
