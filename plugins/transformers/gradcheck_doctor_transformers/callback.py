"""DoctorTrainerCallback: watches the training of Hugging Face's Trainer without changing it."""
from __future__ import annotations

import functools
import warnings
from contextvars import ContextVar
from typing import Any, Literal

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

import gradcheck_doctor as doctor
from gradcheck_doctor.records.interval import interval
from gradcheck_doctor_transformers.metrics import metrics

FIRST_LOOK = 8         # optimizer steps before the first judgement; then after each doubling, and at least
LONGEST = 1000         # every so many steps
CHOICES = ("warn", "raise", "stop")
LOGGED = ("loss", "train_loss")
_training: ContextVar[Any] = ContextVar("trainer in train()", default=None)


class UnhealthyTraining(doctor.DoctorError):
    """Raised by `on_finding="raise"`; the message holds the findings."""


class DoctorTrainerCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Watch training; report each finding once, the root cause first.

    Losses, weights and random state are bit for bit those of the training without it. Hooks come off when training ends, by an exception too.

    Args:
        every: observe each N-th optimizer step, or "auto": dense at the start, then rarer, within 1 % of the time.
        on_finding: "warn" warns, "stop" ends training after the step, "raise" raises UnhealthyTraining. Errors only for stop and raise.
        output: file for the report at the end; its suffix gives the format (.html, .json, .md, .sarif, .txt).
        log_metrics: add doctor/health, doctor/findings, doctor/gradient_ratio, doctor/dead_fraction and doctor/update_ratio to what the Trainer logs next.

    Raises:
        ValueError: `on_finding` has no such value.
    """

    def __init__(self, every: int | str = "auto", on_finding: Literal["warn", "raise", "stop"] = "warn", output: str | None = None,
                 log_metrics: bool = True) -> None:
        if on_finding not in CHOICES:
            raise ValueError(f"on_finding must be one of {', '.join(CHOICES)}, not {on_finding!r}")
        try:
            self.every = interval(every)
        except doctor.DoctorError as error:
            raise ValueError(str(error)) from error
        self.on_finding, self.output, self.log_metrics = on_finding, output, log_metrics
        self.known: list[str] = []                      # fingerprints of what was said; an attribute that checkpoints keep
        self._watch: Any = None
        self._attached = False
        self._next_look = FIRST_LOOK
        self._unlogged: dict[str, float] = {}
        _guard(Trainer)

    def report(self) -> doctor.Report:
        """The report of what was seen so far, also after the end.

        Raises:
            DoctorError: training has not begun.
        """
        if self._watch is None:
            raise doctor.DoctorError("nothing was observed yet: the callback starts with training")
        report: doctor.Report = self._watch.report()
        return report

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: options, and what was said already."""
        return {"args": {"every": self.every, "on_finding": self.on_finding, "output": self.output, "log_metrics": self.log_metrics},
                "attributes": {"known": self.known}}

    # -- events of the Trainer ------------------------------------------------------------------------------------------------------
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any = None, optimizer: Any = None,
                       **kwargs: Any) -> None:
        self.detach()
        self._watch = None
        self._next_look, self._unlogged = FIRST_LOOK, {}
        self.known = _said_before(state, type(self).__name__)
        _doctors_first(_training.get())
        try:
            if args.n_gpu > 1 and args.parallel_mode.value == "not_distributed":
                raise doctor.DoctorError("DataParallel copies the model on every step; start one process per GPU (torchrun, accelerate launch)")
            self._watch = doctor.watch(model, optimizer, every=self.every).attach()
            self._attached = True
        except Exception as error:
            self._say(state, f"this training is not observed: {error}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._watch is None or self._watch.monitor.step < self._next_look:
            return
        step = self._watch.monitor.step
        self._next_look = step + min(max(step, FIRST_LOOK), LONGEST)
        grave = self._look(state)
        if self.on_finding != "warn" and _first_process_says(bool(grave)):
            if self.on_finding == "raise":
                raise UnhealthyTraining(grave or "the first process found errors; its message names them")
            control.should_training_stop = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """The metrics of the last look join the Trainer's own: its loggers, coming after this callback, write both."""
        if logs is not None and self._unlogged and any(name in logs for name in LOGGED):
            logs.update(self._unlogged)
            if state.log_history and state.log_history[-1].get("step") == state.global_step:
                state.log_history[-1].update(self._unlogged)
            self._unlogged = {}

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        grave = self._finish(state)
        if grave and self.on_finding == "raise":
            raise UnhealthyTraining(grave)

    def on_exception(self, state: TrainerState) -> None:
        """Training raised (Ctrl-C too): hooks off, and what was seen goes to the report file. Called by the guard around `Trainer.train`."""
        self._finish(state)

    def detach(self) -> None:
        """Take the hooks off. Safe to call at any time."""
        if self._watch is not None:
            self._watch.detach()
        self._attached = False

    # -- judging --------------------------------------------------------------------------------------------------------------------
    def _finish(self, state: TrainerState) -> str:
        if not self._attached:
            return ""
        self.detach()
        grave = self._look(state)
        if self.output is not None and state.is_world_process_zero:
            self._write(state, self.output)
        return grave

    def _look(self, state: TrainerState) -> str:
        """Judge and say what is new; returns that message when an error is in it. Our own failure is said and training goes on."""
        try:
            report = self.report()
        except Exception as error:
            self._say(state, f"judging failed ({type(error).__name__}: {error}); training goes on")
            return ""
        self._unlogged = metrics(report) if self.log_metrics else {}
        explained = report.data.explained
        serious = [f for f in report.findings if f.severity != "info"]
        new = [f for f in serious if f.fingerprint not in self.known and f.fingerprint not in explained]
        self.known += [f.fingerprint for f in serious if f.fingerprint not in self.known]
        if not new:
            return ""
        message = "\n".join(f"{f.code} {f.rule} {f.severity} {f.module}: {f.message}" + "".join(f"; try: {x.prescription.title}" for x in f.fixes[:1])
                            for f in new)
        grave = any(f.severity == "error" for f in new)
        if not (grave and self.on_finding == "raise"):
            self._say(state, f"at step {state.global_step}:\n{message}")
        return message if grave else ""

    def _say(self, state: TrainerState, message: str) -> None:
        if state.is_world_process_zero:
            warnings.warn(f"gradcheck_doctor {message}" if message.startswith("at ") else f"gradcheck_doctor: {message}", stacklevel=2)

    def _write(self, state: TrainerState, output: str) -> None:
        try:
            self.report().write(output)
        except Exception as error:
            self._say(state, f"the report could not be written to {output} ({type(error).__name__}: {error})")


def _first_process_says(grave: bool) -> bool:
    """The first process's judgement, on every process: if only some of them stopped, the others would wait for them for ever.

    All processes look at the same steps, so this collective comes in the same order everywhere.
    """
    from accelerate.utils import broadcast_object_list

    answer = [grave]
    broadcast_object_list(answer)
    return answer[0]


def _said_before(state: TrainerState, name: str) -> list[str]:
    """Fingerprints that a resumed run's checkpoint holds, whether or not the Trainer restores callbacks."""
    if state.global_step == 0:
        return []
    stored = (state.stateful_callbacks or {}).get(name) or []
    return list(dict.fromkeys(fp for one in (stored if isinstance(stored, list) else [stored]) for fp in one.get("attributes", {}).get("known", ())))


def _doctors_first(trainer: Any) -> None:
    """Loggers come before the user's callbacks, so what a callback adds to the logs would reach none of them. A new list: the old one is being read."""
    if trainer is not None:
        handler = trainer.callback_handler
        handler.callbacks = sorted(handler.callbacks, key=lambda c: not isinstance(c, DoctorTrainerCallback))


def _guard(trainer: type[Any]) -> None:
    """Wrap `Trainer.train` once: a callback has no event for an exception and does not know its Trainer."""
    original = trainer.train
    if hasattr(original, "guarded_by_doctor"):
        return

    @functools.wraps(original)
    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = _training.set(self)
        try:
            return original(self, *args, **kwargs)
        except BaseException:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, DoctorTrainerCallback):
                    callback.on_exception(self.state)
            raise
        finally:
            _training.reset(token)

    train.guarded_by_doctor = True  # type: ignore[attr-defined]
    trainer.train = train
