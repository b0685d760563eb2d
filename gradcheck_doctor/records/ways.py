"""Ways through what was recorded: the operations that a value comes to, and those that it comes from."""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from gradcheck_doctor.records.recording import Operation, Recording

LAYERS = frozenset({"layer", "recurrent", "attention"})        # categories of operations that have weights to mix their inputs with

Through = Callable[[Operation], bool]


def behind(recording: Recording, starts: Iterable[int], through: Through = lambda operation: True) -> Iterator[Operation]:
    """The operations that what `starts` gave comes to, the nearest first, each once; a way ends at one that `through` denies."""
    return _walk(recording, starts, recording.consumers.__getitem__, through)


def before(recording: Recording, starts: Iterable[int], through: Through = lambda operation: True) -> Iterator[Operation]:
    """The operations that what `starts` were given comes from, the nearest first, each once; a way ends at one that `through` denies."""
    return _walk(recording, starts, lambda index: recording.operations[index].producers, through)


def _walk(recording: Recording, starts: Iterable[int], neighbours: Callable[[int], Iterable[int]], through: Through) -> Iterator[Operation]:
    seen, queue = set[int](), deque(starts)
    while queue:
        for index in neighbours(queue.popleft()):
            if index not in seen:
                seen.add(index)
                operation = recording.operations[index]
                yield operation
                if through(operation):
                    queue.append(index)


def is_output(recording: Recording, operation: Operation) -> bool:
    """No layer follows before the loss."""
    return all(user.category not in LAYERS for user in behind(recording, [operation.index]))
