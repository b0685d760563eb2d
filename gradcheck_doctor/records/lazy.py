"""Sequences whose items become records when somebody asks for them: a training has many steps, and a report looks at few."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, overload

Record = TypeVar("Record")


class Lazy(Sequence[Record], Generic[Record]):
    """Tuples of what `make` takes; each is made into its record once, when it is first read."""

    def __init__(self, make: Callable[..., Record]) -> None:
        self._make = make
        self._items: list[Any] = []

    def add(self, *of: Any) -> None:
        """Append the record that is `make(*of)`."""
        self._items.append(of)

    def put(self, index: int, record: Record) -> None:
        """Replace one record."""
        self._items[index] = record

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        found = self._items[index]
        if type(found) is tuple:
            found = self._items[index] = self._make(*found)
        return found
