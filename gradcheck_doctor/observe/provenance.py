"""Which expression of the user's source made this: module constructions, initialisations, calls.

`code.co_positions()` gives the exact span of the expression a frame is executing, so two layers on one line are told apart.
Nothing is written on the user's objects: spans live in weak dictionaries of a `ConstructionLog`.
"""
from __future__ import annotations

import functools
import linecache
import os
import site
import sys
import sysconfig
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from gradcheck_doctor.observe.rate_schedules import RateSchedule, watch_schedulers
from gradcheck_doctor.records.sites import Span

K = TypeVar("K")
V = TypeVar("V")
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EXAMPLES = os.path.join(PACKAGE, "examples")
CALLERS = os.path.join(PACKAGE, "targets") + os.sep      # builds models and calls them: what is further out did not ask for this very call
LIBRARIES = tuple({os.path.abspath(path) + os.sep for path in [
    sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib"),
    *site.getsitepackages(), site.getusersitepackages(), os.path.dirname(os.path.dirname(torch.__file__))] if path})


@functools.cache
def is_user_file(filename: str) -> bool:
    """True for source that the user can edit: not the standard library, not an installed package, not this package."""
    if filename.startswith("<"):
        return False
    path = os.path.abspath(filename)
    if path.startswith(PACKAGE) and not path.startswith(EXAMPLES):
        return False
    return not path.startswith(LIBRARIES)


def span_at(code: CodeType, instruction: int) -> Span | None:
    """Span of the expression that byte-code offset `instruction` of `code` belongs to."""
    return _span_in(code.co_filename, code, instruction)      # code objects of equal text in two files compare equal


@functools.lru_cache(maxsize=8192)
def _span_in(filename: str, code: CodeType, instruction: int) -> Span | None:
    positions = list(code.co_positions())
    if not 0 <= instruction // 2 < len(positions):
        return None
    line, end_line, start, end = positions[instruction // 2]
    if line is None:
        return None
    return Span(filename, line, characters(filename, line, start or 0) + 1,
                end_line, None if end is None else characters(filename, end_line or line, end) + 1)


def characters(filename: str, line: int, byte_offset: int) -> int:
    """Byte offset in a UTF-8 line to characters."""
    text = linecache.getline(filename, line)
    return byte_offset if text.isascii() else len(text.encode()[:byte_offset].decode(errors="ignore"))


def user_frame(frame: FrameType | None) -> FrameType | None:
    """The innermost frame, from `frame` outwards, that runs the user's own source; None where we made the call ourselves, for a probe."""
    while frame is not None and not (is_user_file(frame.f_code.co_filename) and not _is_extension(frame)):
        if frame.f_code.co_filename.startswith(CALLERS):
            return None
        frame = frame.f_back
    return frame


def _is_extension(frame: FrameType) -> bool:
    """True for our plugins, which may be installed from a source folder."""
    return str(frame.f_globals.get("__name__", "")).startswith("gradcheck_doctor_")


def user_span(frame: FrameType | None) -> Span | None:
    """Span of the user's expression being executed at or above `frame`."""
    found = user_frame(frame)
    return None if found is None else span_at(found.f_code, found.f_lasti)


def _construction_frame(frame: FrameType | None, module: object) -> FrameType | None:
    """Climb out of the `__init__` chain of `module` to the frame that asked for it."""
    while frame is not None:
        code = frame.f_code
        first = code.co_varnames[0] if code.co_argcount else None
        if first is None or code.co_name != "__init__" or frame.f_locals.get(first) is not module:
            return frame
        frame = frame.f_back
    return None


def construction_span(frame: FrameType | None, made: object) -> Span | None:
    """The user's expression that built `made`."""
    return user_span(_construction_frame(frame, made))


@dataclass(frozen=True)
class Initialisation:
    """One explicit nn.init call on a parameter."""

    function: str
    span: Span | None
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Application:
    """One `module.apply(function)` in the user's source; `tick` says what was built before it."""

    module: weakref.ref[nn.Module]
    code: CodeType
    span: Span | None
    tick: int


class WeakTable(Generic[K, V]):
    """A dictionary by identity that does not keep its keys alive: modules may define `__hash__` and `__eq__` as they like."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[weakref.ref[Any], V]] = {}

    def __setitem__(self, key: K, value: V) -> None:
        number = id(key)
        self._rows[number] = (weakref.ref(key, lambda _: self._rows.pop(number, None)), value)

    def get(self, key: K) -> V | None:
        row = self._rows.get(id(key))
        return row[1] if row is not None and row[0]() is key else None

    def items(self) -> Iterator[tuple[K, V]]:
        for reference, value in list(self._rows.values()):
            key = reference()
            if key is not None:
                yield key, value


class ConstructionLog:
    """Where modules were built, parameters initialised and weights loaded, while `recording_construction` is open."""

    def __init__(self) -> None:
        self.spans: WeakTable[nn.Module, Span] = WeakTable()
        self.modules: WeakTable[nn.Module, int] = WeakTable()     # module -> when it was built, in ticks of this log
        self.loaded: WeakTable[nn.Module, dict[str, Any]] = WeakTable()
        self.optimizers: WeakTable[torch.optim.Optimizer, Span] = WeakTable()
        self.schedules: WeakTable[torch.optim.Optimizer, RateSchedule] = WeakTable()
        self.compiled = False
        self.unpickled = False                                    # something was read with torch.load
        self.on_optimizer: Callable[[torch.optim.Optimizer], None] | None = None
        self.initialised: dict[int, list[Initialisation]] = {}
        self.init_sites: dict[Span, set[int]] = {}                # nn.init call -> addresses of the values it drew
        self.applied: list[Application] = []
        self.ticks = 0
        self._alive: dict[int, weakref.ref[torch.Tensor]] = {}

    def built(self, module: nn.Module, frame: FrameType | None) -> None:
        self.ticks += 1
        self.modules[module] = self.ticks
        if self.spans.get(module) is not None:
            return
        span = construction_span(frame, module)
        if span is not None:
            self.spans[module] = span

    def optimizer_built(self, optimizer: torch.optim.Optimizer, frame: FrameType | None) -> None:
        span = construction_span(frame, optimizer)
        if span is not None:
            self.optimizers[optimizer] = span
        if self.on_optimizer is not None:
            self.on_optimizer(optimizer)

    def note_init(self, function: str, tensor: torch.Tensor, frame: FrameType | None, arguments: dict[str, Any]) -> None:
        if frame is None or not is_user_file(frame.f_code.co_filename):
            return                                        # a layer's own reset_parameters is its default, not the user's choice
        key = id(tensor)
        known = self._alive.get(key)
        if known is None or known() is not tensor:
            self.initialised[key] = []
            self._alive[key] = weakref.ref(tensor)
        span = user_span(frame)
        self.initialised[key].append(Initialisation(function, span, arguments))
        if span is not None and not tensor.is_meta:
            self.init_sites.setdefault(span, set()).add(tensor.data_ptr())

    def note_apply(self, module: nn.Module, function: Any, frame: FrameType | None) -> None:
        """`module.apply(function)` by the user; torch's own calls on the children are no new ones."""
        code = getattr(getattr(function, "func", function), "__code__", None)
        if frame is not None and code is not None and is_user_file(frame.f_code.co_filename) and is_user_file(code.co_filename):
            self.ticks += 1
            self.applied.append(Application(weakref.ref(module), code, user_span(frame), self.ticks))

    def initialisations(self, tensor: torch.Tensor) -> list[Initialisation]:
        known = self._alive.get(id(tensor))
        return self.initialised.get(id(tensor), []) if known is not None and known() is tensor else []


_open: list[ConstructionLog] = []


def current_log() -> ConstructionLog | None:
    """The innermost open log, None when nothing records construction."""
    return _open[-1] if _open else None


@contextmanager
def recording_construction(log: ConstructionLog | None = None) -> Iterator[ConstructionLog]:
    """Record where modules are built and initialised while open; restores what it patched, also after an exception."""
    log = log if log is not None else ConstructionLog()
    restore = _install(log)
    _open.append(log)
    try:
        yield log
    finally:
        _open.remove(log)
        for owner, name, original in restore:
            setattr(owner, name, original)


def _install(log: ConstructionLog) -> list[tuple[Any, str, Any]]:
    original_init, original_load = nn.Module.__init__, nn.Module.load_state_dict

    @functools.wraps(original_init)
    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        original_init(self, *args, **kwargs)
        log.built(self, sys._getframe(1))

    @functools.wraps(original_load)
    def load_state_dict(self: nn.Module, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        result = original_load(self, state_dict, *args, **kwargs)
        log.loaded[self] = {"missing": tuple(result.missing_keys), "unexpected": tuple(result.unexpected_keys), "keys": len(state_dict),
                            "span": user_span(sys._getframe(1)), "made": not log.unpickled and "safetensors" not in sys.modules}
        return result

    original_read = torch.load

    @functools.wraps(original_read)
    def read(*args: Any, **kwargs: Any) -> Any:
        log.unpickled = True
        return original_read(*args, **kwargs)

    original_apply = nn.Module.apply

    @functools.wraps(original_apply)
    def apply(self: nn.Module, fn: Callable[[nn.Module], None]) -> nn.Module:
        log.note_apply(self, fn, sys._getframe(1))
        return original_apply(self, fn)

    original_optimizer = torch.optim.Optimizer.__init__

    @functools.wraps(original_optimizer)
    def optimizer_init(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        original_optimizer(self, *args, **kwargs)
        log.optimizer_built(self, sys._getframe(1))

    original_compile = torch.compile

    @functools.wraps(original_compile)
    def compile_(*args: Any, **kwargs: Any) -> Any:
        log.compiled = True
        return original_compile(*args, **kwargs)

    restore: list[tuple[Any, str, Any]] = [(torch.optim.Optimizer, "__init__", original_optimizer), (torch, "compile", original_compile),
                                           (torch, "load", original_read), (nn.Module, "__init__", original_init), (nn.Module, "load_state_dict", original_load),
                                           (nn.Module, "apply", original_apply), *watch_schedulers(log)]
    torch.optim.Optimizer.__init__ = optimizer_init  # type: ignore[method-assign]
    torch.compile = compile_
    torch.load = read
    nn.Module.__init__ = init  # type: ignore[method-assign]
    nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]
    nn.Module.apply = apply  # type: ignore[method-assign, assignment]
    for name in [n for n in dir(nn.init) if n.endswith("_") and not n.startswith("_")]:
        original = getattr(nn.init, name)
        restore.append((nn.init, name, original))
        setattr(nn.init, name, _watching_init(log, name, original))
    return restore


def _watching_init(log: ConstructionLog, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def initialise(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        log.note_init(name, tensor, sys._getframe(1), {**kwargs, **{f"arg{i}": a for i, a in enumerate(args)}})
        return original(tensor, *args, **kwargs)

    return initialise
