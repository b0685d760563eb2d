"""A live model as treatments see it: its modules by path, what the report's recording says about them, its optimizers."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.recording import Operation, ParameterRecord, Recording
from gradcheck_doctor.records.ways import is_output
from gradcheck_doctor.treatments.live_optimizer import Optimizers

PASSED = frozenset({"shape", "dropout", "scale", "reduce", "other", "norm", "pool"})     # between a layer and its activation


def _no_batch() -> None:
    raise TreatmentRefused("it needs data: pass batch=")


@dataclass
class Patient:
    """Facts that every treatment may use.

    Attributes:
        recording: what the report was concluded from, None for a report read from a file.
        parameters: records of the parameters as they are now.
        loaded: module path -> names that a load_state_dict left missing, for modules whose loading was seen.
        steps: optimizer steps that the report's recording saw.
        retrain: module paths that may be initialised although they look trained; True: all of them.
        changed: parameters whose values are not those that the report saw.
        batch, targets: what the model is fed and judged by, None when not given.
        forward: runs the model on the batch and leaves it untouched.
    """

    model: nn.Module
    optimizers: Optimizers = field(default_factory=Optimizers)
    recording: Recording | None = None
    parameters: Mapping[str, ParameterRecord] = field(default_factory=dict)
    loaded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    steps: int = 0
    retrain: bool | tuple[str, ...] = False
    changed: frozenset[str] = frozenset()
    batch: Any = None
    targets: Any = None
    forward: Callable[[], None] = _no_batch
    modules: dict[str, nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.modules = dict(self.model.named_modules(remove_duplicate=False))     # paths keep their meaning when modules move

    def module(self, path: str) -> nn.Module:
        """The submodule at a path.

        Raises:
            TreatmentRefused: there is none.
        """
        if path not in self.modules:
            raise TreatmentRefused(f"this model has no module {path!r}; the report is about another one")
        return self.modules[path]

    def operations(self, path: str) -> tuple[Operation, ...]:
        """What was recorded inside a module, in order of the first call."""
        return tuple(o for o in self.recording.operations if o.module == path) if self.recording is not None else ()

    def own_parameters(self, path: str) -> Iterator[tuple[str, nn.Parameter]]:
        """(full name, parameter) held by a module itself."""
        for name, parameter in self.module(path).named_parameters(recurse=False):
            yield f"{path}.{name}" if path else name, parameter

    def users(self, operation: Operation) -> list[Operation]:
        """The operations that use an operation's output."""
        assert self.recording is not None
        return [self.recording.operations[i] for i in self.recording.consumers[operation.index]]

    def is_output(self, operation: Operation) -> bool:
        """No layer follows before the loss."""
        assert self.recording is not None
        return is_output(self.recording, operation)

    def activation_behind(self, operation: Operation) -> Operation | None:
        """The activation that a layer feeds, through normalisation, dropout and shape changes; None where the way forks or there is none."""
        current = operation
        while True:
            users = self.users(current)
            if len(users) != 1 or users[0].category not in (*PASSED, "activation"):
                return None
            current = users[0]
            if current.category == "activation":
                return current

    def layer_before(self, operation: Operation) -> Operation | None:
        """The layer that feeds an operation, through everything that has no weights of two axes."""
        assert self.recording is not None
        current = operation
        while current.producers:
            current = self.recording.operations[current.producers[0]]
            if current.category == "layer":
                return current
            if current.category not in PASSED:
                return None
        return None

    def other_names(self, tensor: Tensor, paths: tuple[str, ...]) -> list[str]:
        """Names of `tensor` outside the modules at `paths`: another module shares it."""
        same = {id(self.module(p)) for p in paths}
        return [f"{path}.{n}".lstrip(".") for path, module in self.model.named_modules() if id(module) not in same
                for n, p in module._parameters.items() if p is tensor]
