"""Runs an unmodified training script under observation, as `python script.py` or `python -m module` would run it."""
from __future__ import annotations

import builtins
import os
import runpy
import signal
import sys
import traceback
import types
from dataclasses import dataclass
from typing import Any

from gradcheck_doctor.errors import TargetError
from gradcheck_doctor.records.recording import Recording

CRASH_WAIT = 2.0       # seconds that rank 0 waits for the figures of the others when its script failed: they may hang in a collective


class _Stop(BaseException):
    """Raised at the end of the last wanted step; no script catches it by accident."""


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
               on_step: Any = None) -> ScriptResult:
    """Run and observe. The script sees the argv, `sys.path[0]` and `__main__` it would see without us."""
    from gradcheck_doctor.observe.distributed import launched_rank
    from gradcheck_doctor.observe.provenance import recording_construction
    from gradcheck_doctor.observe.watch import Monitor

    code = _prepare(script, module)

    def stop() -> None:
        raise _Stop

    saved = sys.argv, sys.path[:], sys.modules.get("__main__"), os.getcwd()
    with recording_construction() as log:
        monitor = Monitor(every=every, log=log, max_steps=max_steps, stop=stop, on_step=on_step, channel="run")
        previous = _on_terminate()
        try:
            status, crash, stopped = _execute(monitor, code, script, module, arguments)
            if status:
                monitor.ranks.final_wait = CRASH_WAIT
        finally:
            monitor.detach()
            if previous is not None:
                signal.signal(signal.SIGTERM, previous)
            sys.argv, sys.path[:] = saved[0], saved[1]
        os.chdir(saved[3])
        facts: dict[str, Any] = {"stopped": stopped} if stopped else {}
        recording = monitor.gathered(script=script or f"-m {module}", **facts)
    if saved[2] is not None:
        sys.modules["__main__"] = saved[2]
    return ScriptResult(recording, status, crash, stopped, monitor.ranks.rank or launched_rank())


def _prepare(script: str | None, module: str | None) -> types.CodeType | None:
    if module is not None:
        return None
    assert script is not None
    try:
        with open(script, "rb") as file:
            source = file.read()
    except OSError as error:
        raise TargetError(f"cannot read {script}: {error.strerror or error}") from error
    try:
        return compile(source, os.path.abspath(script), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise TargetError(f"{script} does not parse: {error}") from error


def _on_terminate() -> Any:
    """SIGTERM as an exception, so that what was seen is reported; None outside the main thread."""
    def terminate(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    try:
        return signal.signal(signal.SIGTERM, terminate)
    except ValueError:
        return None


def _execute(monitor: Any, code: types.CodeType | None, script: str | None, module: str | None, arguments: list[str]) -> tuple[int, str, str]:
    """(status, traceback, what stopped it)."""
    try:
        with monitor:
            if module is not None:
                sys.argv = [module, *arguments]
                sys.path.insert(0, os.getcwd())
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            else:
                _run_code(code, str(script), arguments)
    except _Stop:
        return 0, "", f"after {monitor.step} optimizer steps (--max-steps)"
    except SystemExit as ended:
        return _exit_status(ended), "", ""
    except KeyboardInterrupt:
        return 130, "", "interrupted"
    except BaseException as error:
        return 1, _traceback(error), ""
    return 0, "", ""


def _run_code(code: Any, script: str, arguments: list[str]) -> None:
    path = os.path.abspath(script)
    sys.argv = [script, *arguments]
    sys.path[0:1] = [os.path.dirname(path)]
    main = types.ModuleType("__main__")
    main.__dict__.update({"__file__": script, "__builtins__": builtins, "__cached__": None, "__spec__": None})
    sys.modules["__main__"] = main
    exec(code, main.__dict__)


def _exit_status(ended: SystemExit) -> int:
    if ended.code is None:
        return 0
    if isinstance(ended.code, int):
        return ended.code
    print(ended.code, file=sys.stderr)
    return 1


def _traceback(error: BaseException) -> str:
    """The traceback without our own frames."""
    trace = error.__traceback__
    here = os.path.dirname(os.path.abspath(__file__))
    while trace is not None and os.path.abspath(trace.tb_frame.f_code.co_filename).startswith((here, os.path.dirname(here))):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))
