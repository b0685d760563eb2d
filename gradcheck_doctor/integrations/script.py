"""Runs an unmodified training script under observation, as `python script.py` or `python -m module` would run it."""
from __future__ import annotations

import builtins
import contextlib
import importlib.util
import os
import signal
import sys
import threading
import traceback
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gradcheck_doctor.errors import DoctorError, TargetError
from gradcheck_doctor.observe.recorded import honest
from gradcheck_doctor.records.edited import install
from gradcheck_doctor.records.findings import SOURCE
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.records.sources import digest

CRASH_WAIT = 2.0       # seconds that rank 0 waits for the figures of the others when its script failed: they may hang in a collective
INTERRUPTED = 128 + signal.SIGINT
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class _Stop(BaseException):
    """Raised at the end of the last wanted step; no script catches it by accident."""


class Listener(Protocol):
    """Told about the run while it goes on: the store, the live line."""

    def step(self, monitor: Any) -> None:
        """An optimizer step ended."""

    def observed(self, monitor: Any) -> None:
        """An observed step ended; nothing is being observed now."""

    def ended(self, recording: Recording, status: str, merged: bool) -> None:
        """The script ended: status is ended, stopped, crashed, interrupted or terminated; `merged` when the recording holds figures of other ranks."""


@dataclass(frozen=True)
class ScriptResult:
    """How the script ended: `status` is its exit status, `crash` the formatted traceback of an exception, `stopped` the signal or limit that ended it.

    `rank` is this process's place in a distributed training; only rank 0 reports.
    """

    recording: Recording
    status: int = 0
    crash: str = ""
    stopped: str = ""
    rank: int = 0


def run_script(script: str | None, module: str | None, arguments: list[str], *, every: int | str = "auto", max_steps: int | None = None,
               listeners: Sequence[Listener] = ()) -> ScriptResult:
    """Run and observe. The script sees the argv, `sys.path[0]` and `__main__` it would see without us.

    Args:
        script: a file, or a folder with a `__main__.py`; None with `module`.
        module: as after `python -m`.
        arguments: what follows it on the command line.
        every, max_steps: which steps are observed; stop the script after so many optimizer steps.
        listeners: told about every step, in this process only.

    Raises:
        TargetError: there is no such script or module, or it does not parse.
    """
    from gradcheck_doctor.observe.distributed import launched_rank
    from gradcheck_doctor.observe.provenance import recording_construction
    from gradcheck_doctor.observe.watch import Monitor

    install()
    program = _of_file(script) if script is not None else None
    name, owner = script or f"-m {module}", os.getpid()
    source = {SOURCE: digest(program.file)} if program is not None else {}     # as it is now: a script may be edited while it runs

    def stop() -> None:
        if os.getpid() == owner:
            raise _Stop

    def tell(what: str) -> Any:
        return lambda monitor: [getattr(listener, what)(monitor) for listener in listeners] if os.getpid() == owner else None

    with _interpreter_restored(), recording_construction() as log:
        monitor = Monitor(every=every, log=log, max_steps=max_steps, stop=stop, on_step=tell("step") if listeners else None,
                          on_observed=tell("observed") if listeners else None, channel="run")
        with on_terminate() as received:
            status, crash, ended = _execute(monitor, program, module or "", arguments)
        if received:
            ended = "terminated"
        if status:
            monitor.ranks.final_wait = CRASH_WAIT
        facts = {**_facts(name, ended, monitor), **source}
        recording = honest(monitor.gathered(**facts))
        for listener in listeners:
            listener.ended(recording, ended, monitor.ranks.joined)
    return ScriptResult(recording, status, crash, facts.get("stopped", ""), monitor.ranks.rank or launched_rank())


def _facts(name: str, ended: str, monitor: Any) -> dict[str, Any]:
    stopped = {"stopped": f"after {monitor.step} optimizer steps (--max-steps)", "interrupted": "interrupted", "terminated": "terminated (SIGTERM)"}
    return {"script": name} | ({"stopped": stopped[ended]} if ended in stopped else {})


@contextlib.contextmanager
def _interpreter_restored() -> Iterator[None]:
    """What a script may change for good: arguments, path, `__main__`, streams and the working directory."""
    saved = sys.argv, sys.path[:], sys.modules.get("__main__"), os.getcwd(), sys.stdout, sys.stderr
    try:
        yield
    finally:
        with contextlib.suppress(OSError):                       # the script may have removed it
            os.chdir(saved[3])
        sys.argv, sys.path[:], sys.stdout, sys.stderr = saved[0], saved[1], saved[4], saved[5]
        if saved[2] is not None:
            sys.modules["__main__"] = saved[2]


@contextlib.contextmanager
def on_terminate() -> Iterator[list[int]]:
    """SIGTERM as SystemExit, so that the script's own clean-up runs and what was seen is reported; the signals received.

    A second one kills at once. Children that were forked die of it as they would without us, and a signal that the script handles,
    or that was ignored from the start (nohup), is left alone.
    """
    received: list[int] = []
    owner = os.getpid()

    def terminate(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != owner:
            os.kill(os.getpid(), number)
            return
        received.append(number)
        raise SystemExit(128 + number)

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield received
    finally:
        if ours and signal.getsignal(signal.SIGTERM) is terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


# -- what is run ----------------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Program:
    """Code and what its `__main__` says about itself."""

    code: types.CodeType
    argv0: str
    file: str
    folder: str                      # sys.path[0]
    spec: Any = None
    package: str | None = None


def _of_file(script: str) -> _Program:
    file, folder = script, ""
    if os.path.isdir(script):
        file, folder = os.path.join(script, "__main__.py"), os.path.abspath(script)
        if not os.path.isfile(file):
            raise TargetError(f"{script} is a folder without a __main__.py; name the script to run")
    try:
        with open(file, "rb") as stream:
            source = stream.read()
    except OSError as error:
        raise TargetError(f"cannot read {file}: {error.strerror or error}") from error
    path = os.path.abspath(file)
    try:
        code = compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise TargetError(f"{file} does not parse: {error}") from error
    return _Program(code, script, path, folder or os.path.dirname(os.path.realpath(file)), package="" if folder else None)


def _of_module(name: str) -> _Program:
    """The module, or the `__main__` of a package, found as `python -m` finds it."""
    spec = importlib.util.find_spec(name) if _exists(name) else None
    if spec is not None and spec.submodule_search_locations is not None:
        name = f"{name}.__main__"
        spec = importlib.util.find_spec(name)
    code = spec.loader.get_code(name) if spec is not None and spec.loader is not None and hasattr(spec.loader, "get_code") else None
    if spec is None or code is None:
        raise TargetError(f"No module named {name}; a script is run without -m: doctor run SCRIPT")
    return _Program(code, spec.origin or name, spec.origin or "", os.getcwd(), spec, spec.parent)


def _exists(name: str) -> bool:
    """Whether each package on the way to the module is there; importing these is importing the user's code, which may raise."""
    parent = name.rpartition(".")[0]
    return (not parent or _exists(parent) and getattr(sys.modules.get(parent) or importlib.import_module(parent), "__path__", None) is not None) \
        and importlib.util.find_spec(name) is not None


def _execute(monitor: Any, program: _Program | None, module: str, arguments: list[str]) -> tuple[int, str, str]:
    """(exit status, traceback, how it ended)."""
    known = set(threading.enumerate())
    try:
        with monitor:
            if program is None:
                sys.argv = ["-m", *arguments]
                _set_first_path(os.getcwd())
                program = _of_module(module)
            _run(program, arguments)
            for thread in set(threading.enumerate()) - known:
                if not thread.daemon:
                    thread.join()
    except _Stop:
        return 0, "", "stopped"
    except SystemExit as ended:
        return _exit_status(ended), "", "ended"
    except KeyboardInterrupt:
        return INTERRUPTED, "", "interrupted"
    except DoctorError as error:
        if program is None:
            raise
        return 1, _traceback(error), "crashed"
    except BaseException as error:
        return 1, _traceback(error), "crashed"
    return 0, "", "ended"


def _run(program: _Program, arguments: list[str]) -> None:
    sys.argv = [program.argv0, *arguments]
    _set_first_path(program.folder)
    main = types.ModuleType("__main__")
    main.__dict__.update({"__file__": program.file, "__builtins__": builtins, "__spec__": program.spec, "__package__": program.package,
                          "__loader__": getattr(program.spec, "loader", None), "__cached__": getattr(program.spec, "cached", None)})
    sys.modules["__main__"] = main
    exec(program.code, main.__dict__)


def _set_first_path(folder: str) -> None:
    """In place of ours, which the interpreter put there; with `python -P` it put none."""
    if not sys.flags.safe_path:
        sys.path[0:1] = [folder]


def _exit_status(ended: SystemExit) -> int:
    if ended.code is None:
        return 0
    if isinstance(ended.code, int):
        return ended.code & 0xFF
    print(ended.code, file=sys.stderr)
    return 1


def _traceback(error: BaseException) -> str:
    """The traceback without our own frames, also those between the script's."""
    told = traceback.TracebackException.from_exception(error)
    seen: set[int] = set()
    chain: list[traceback.TracebackException | None] = [told]
    while chain:
        each = chain.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        each.stack = traceback.StackSummary.from_list([f for f in each.stack if not os.path.abspath(f.filename).startswith(PACKAGE)])
        chain += [each.__cause__, each.__context__]
    return "".join(told.format())
