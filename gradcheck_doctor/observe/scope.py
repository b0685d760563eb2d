"""Which module is running, and what it is called: paths of every model seen, found from the modules that run."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import get_ident
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from gradcheck_doctor.observe.provenance import ConstructionLog
from gradcheck_doctor.observe.wrappers import class_name, wrapped


class Roots:
    """Names for modules and parameters. Several models get their class name as a prefix; a single one gets none."""

    def __init__(self, log: ConstructionLog | None = None) -> None:
        self.log = log
        self.roots: list[nn.Module] = []
        self._place: dict[int, tuple[int, str]] = {}
        self._parameters: dict[int, tuple[int, str]] = {}
        self.orphans: dict[int, nn.Module] = {}
        self._known: list[nn.Module] | None = None
        self.calls: dict[int, int] = {}
        self.data_parallel = False
        self._slots: dict[tuple[int, str], torch.nn.Parameter] = {}

    def adopt(self, root: nn.Module) -> None:
        """Know `root` and everything below it; call again after the model changed. Of DistributedDataParallel the model inside."""
        if (inside := wrapped(root)) is not None:
            self.data_parallel, root = True, inside
        if not any(root is known for known in self.roots):
            self.roots.append(root)
        self._known = None
        number = next(i for i, known in enumerate(self.roots) if known is root)
        for path, module in root.named_modules():
            self._place[id(module)] = (number, path)
            for role, parameter in module._parameters.items():
                if hasattr(parameter, "to_local"):
                    self._slots[id(module), role] = parameter  # type: ignore[assignment]
        for name, parameter in root.named_parameters():
            self._parameters[id(parameter)] = (number, name)

    def known(self) -> list[nn.Module]:
        """Every module that has a name; gathered again only after something was adopted."""
        if self._known is None:
            found = [m for root in (*self.roots, *self.orphans.values()) for m in root.modules()]
            self._known = list({id(m): m for m in found}.values())
        return self._known

    def knows(self, module: nn.Module) -> bool:
        return id(module) in self._place

    def meet(self, module: nn.Module, outermost: bool) -> None:
        """A module is about to run: make sure it has a name."""
        if self.knows(module):
            return
        if outermost:
            self.adopt(self._top(module))
            return
        for root in self.roots:                               # a layer added or replaced during training
            if any(module is child for child in root.modules()):
                self.adopt(root)
                return
        self._adopt_orphan(module)

    def _adopt_orphan(self, module: nn.Module) -> None:
        """A module that runs inside another but is registered nowhere: its parameters are in no `parameters()`."""
        self._known = None
        number = len(self.orphans)
        self.orphans[id(module)] = module
        prefix = f"<unregistered {type(module).__name__} {number}>"
        for path, child in module.named_modules():
            self._place[id(child)] = (-1, f"{prefix}.{path}".rstrip("."))
        for name, parameter in module.named_parameters():
            self._parameters[id(parameter)] = (-1, f"{prefix}.{name}")

    def _top(self, module: nn.Module) -> nn.Module:
        """The outermost module that contains `module`, among all that were built while we looked."""
        if self.log is None:
            return module
        best, size = module, sum(1 for _ in module.modules())
        for candidate, _ in self.log.modules.items():
            if candidate is module or not candidate._modules or wrapped(candidate) is not None:
                continue
            members = list(candidate.modules())
            if len(members) > size and any(m is module for m in members):
                best, size = candidate, len(members)
        return best

    def parameter(self, tensor: torch.Tensor) -> tuple[int, str] | None:
        return self._parameters.get(id(tensor))

    @property
    def data_sharded(self) -> bool:
        """Some parameters are shards (FSDP2)."""
        return bool(self._slots)

    def sharded(self, module: nn.Module, role: str, parameter: torch.nn.Parameter) -> torch.nn.Parameter:
        """The sharded parameter that the optimizer holds, where FSDP2 has put the gathered one in its place for a forward."""
        return self._slots.get((id(module), role), parameter)

    def shard_behind(self, module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
        """The sharded parameter whose gathered values `tensor` is, else `tensor` itself. Attention hands on the weights of the layers inside it."""
        if self._slots and id(tensor) not in self._parameters:
            for owner in module.modules():
                for role, parameter in owner._parameters.items():
                    if parameter is tensor:
                        return self.sharded(owner, role, parameter)
        return tensor

    def place(self, module: nn.Module) -> tuple[int, str]:
        return self._place.get(id(module), (-1, type(module).__name__))

    def models(self) -> list[int]:
        """Numbers of the roots that have parameters (a loss module has none)."""
        return [i for i, root in enumerate(self.roots) if any(True for _ in root.parameters())]

    def prefixes(self) -> dict[int, str]:
        """Prefix of each root's names: "" for a single model."""
        models = self.models()
        result, used = {-1: ""}, set[str]()
        for number, root in enumerate(self.roots):
            name = class_name(root)
            unique = name if name not in used else f"{name}_{number}"
            used.add(unique)
            result[number] = "" if models == [number] else unique
        return result

    def names(self) -> Iterator[tuple[nn.Module, str]]:
        """(module, full name) of every known module, parents first."""
        prefixes = self.prefixes()
        for number, root in enumerate(self.roots):
            for path, module in root.named_modules():
                yield module, join(prefixes[number], path)
        for orphan in self.orphans.values():
            for _, module in orphan.named_modules():
                yield module, self._place[id(module)][1]


def join(prefix: str, path: str) -> str:
    return f"{prefix}.{path}".strip(".") if prefix else path


class Scope:
    """The stack of running modules, kept by two global hooks that only push and pop. Attached on observed steps only."""

    def __init__(self, roots: Roots) -> None:
        self.roots = roots
        self.stack: list[nn.Module] = []
        self.argument_names: dict[int, str] = {}
        self._handles: list[RemovableHandle] = []
        self._thread = get_ident()
        self.on_first: Callable[[], None] | None = None            # called once, when the first module runs
        self.on_again: Callable[[], None] | None = None            # called when an outermost module runs
        self.on_passed: Callable[[Any, Any], None] | None = None
        self.on_dark: Callable[[nn.Module, Any, Any], None] | None = None          # called behind a module that ran without gradients
        self._inside: dict[int, Any] = {}
        self._aside = False                                        # on this step another network ran, without gradients
        self.steps_aside = 0                                       # observed steps on which one did: it may set the targets
        self.seconds = 0.0                                         # spent in the two hooks, and how often torch called them
        self.calls = 0

    def attach(self) -> None:
        if not self._handles:
            self._handles = [register_module_forward_pre_hook(self._enter),
                             register_module_forward_hook(self._leave, always_call=True)]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.steps_aside += self._aside
        self._aside = False
        self.on_first = self.on_again = None
        self.stack.clear()
        self._inside.clear()

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if get_ident() != self._thread or torch.compiler.is_compiling():
            return
        if not torch.is_grad_enabled():
            self._aside = self._aside or not self.roots.knows(module) and next(module.parameters(), None) is not None
            return
        started = perf_counter()
        stack, roots = self.stack, self.roots
        if self.on_again is not None and not stack:
            self.on_again()
            if not self._handles:                              # the step that begins is not observed
                return
        if roots.knows(module) or self._met(module):
            if self.on_first is not None:
                self.on_first()
            key = id(module)
            stack.append(module)
            roots.calls[key] = roots.calls.get(key, 0) + 1
            if len(stack) == 1:
                self.argument_names = {id(a): f"input{i}" for i, a in enumerate(args) if isinstance(a, torch.Tensor)}
        self.calls += 2
        self.seconds += perf_counter() - started

    def _met(self, module: nn.Module) -> bool:
        """Give a new module its name; False for a wrapper, which has none."""
        if (inside := wrapped(module)) is not None:
            self.roots.adopt(module)
            self._inside[id(inside)] = None
            return False
        self.roots.meet(module, outermost=not self.stack)
        return True

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if get_ident() != self._thread:                        # a model that another thread runs meanwhile
            return
        started = perf_counter()
        if self.on_dark is not None and not torch.is_grad_enabled():
            self.on_dark(module, args, output)
        if self._inside:
            self._pass(module, output)
        stack = self.stack
        if stack and stack[-1] is module:
            stack.pop()
        elif any(m is module for m in stack):
            while stack.pop() is not module:
                pass
        self.seconds += perf_counter() - started

    def _pass(self, module: nn.Module, output: Any) -> None:
        """DistributedDataParallel may hand on copies of what the model inside it gave: the same values."""
        if id(module) in self._inside:
            self._inside[id(module)] = output
        elif (inside := wrapped(module)) is not None:
            given = self._inside.pop(id(inside), None)
            if self.on_passed is not None and given is not None:
                self.on_passed(given, output)
