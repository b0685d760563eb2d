"""DoctorCallback: watches a Trainer's training without changing it.

The class inherits from every Lightning `Callback` that is already imported (or importable), so both Trainers and both CLIs accept it.
"""
from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import Any, Literal

from gradcheck_doctor.errors import ConfigError, DoctorError, ProbeError
from gradcheck_doctor.records.interval import interval

FIRST_CHECK = 8        # optimizer steps before the second judgement (the first comes before any step); then after each doubling


def _bases() -> tuple[type, ...]:
    """Callback classes of the Lightning packages in use; importing both would cost seconds, so only what is needed is imported."""
    homes = {"pytorch_lightning": "pytorch_lightning", "lightning": "lightning.pytorch"}
    names = [home for top, home in homes.items() if top in sys.modules]
    for home in names or list(homes.values()):
        try:
            importlib.import_module(home)
        except ImportError:
            continue
        names = names or [home]
    found = [sys.modules[home].Callback for home in names if home in sys.modules]
    if not found:
        raise ImportError("gradcheck_doctor.lightning needs pytorch_lightning or lightning: pip install 'gradcheck-doctor[lightning]'")
    return tuple(dict.fromkeys(found))


class UnhealthyTraining(DoctorError):
    """Raised by `on_finding="raise"`; the message holds the findings."""


class DoctorCallback(*_bases()):  # type: ignore[misc]
    """Watch training; report findings once each, the root cause first.

    The first judgement comes before the first optimizer step, from the first batch's own forward and backward; the next ones after 8, 16,
    32, ... steps and at the end.

    Args:
        every: observe the first 8 optimizer steps and each N-th, or "auto" (dense at the start, then rarer, within 1 % of the time). Below 4, past
            64 observed steps, layers are seen on a quarter of all steps, the loss and the gradient norms on the others.
        on_finding: "warn" prints, "stop" ends training after the step, "raise" raises UnhealthyTraining. Errors only for stop and raise.
        treat: "safe" applies the safe cures to the model before its first step (see docs/lightning.md); never to loaded or trained weights,
            never on a resumed run.
        output: file for the report at the end (format from the suffix).
        log_metrics: log a few numbers under doctor/ through the trainer's loggers.

    Raises:
        ConfigError: an option has no such value.
    """

    def __init__(self, every: int | str = "auto", on_finding: Literal["warn", "raise", "stop"] = "warn", treat: Literal["off", "safe"] = "off",
                 output: str | None = None, log_metrics: bool = True) -> None:
        super().__init__()
        if on_finding not in ("warn", "raise", "stop"):
            raise ConfigError(f"on_finding must be warn, raise or stop, not {on_finding!r}")
        if treat not in ("off", "safe"):
            raise ConfigError(f"treat must be off or safe, not {treat!r}")
        if output is not None and not isinstance(output, (str, os.PathLike)):
            raise ConfigError(f"output must be a path, not {output!r}")
        self.every: int | str = interval(every)
        self.on_finding, self.treat, self.output, self.log_metrics = on_finding, treat, output, log_metrics
        self.monitor: Any = None
        self.treatments: Any = None
        self.factory_made = False
        self._known: set[str] = set()
        self._metrics: Any = None
        self._looked = False
        self._start = 0
        self._next_check = FIRST_CHECK

    @property
    def state_key(self) -> str:
        return "DoctorCallback[entry point]" if self.factory_made else f"DoctorCallback[every={self.every}]"

    def state_dict(self) -> dict[str, Any]:
        """Findings already reported, so that a resumed run does not repeat them."""
        return {"known": sorted(self._known)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._known = set(state_dict.get("known", ()))

    # -- hooks of the Trainer -------------------------------------------------------------------------------------------------------------
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._detach()
        self.monitor = None
        if self.factory_made and any(isinstance(c, DoctorCallback) and c is not self for c in trainer.callbacks):
            return                                            # the user's own one is there
        if self.treat == "off":
            self._attach(trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.monitor is None and self.treat == "safe":
            from gradcheck_doctor.integrations.lightning_treat import treat_first

            self.treatments = treat_first(trainer, pl_module, batch)
            self._attach(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """The first gradient is there and nothing was stepped yet: what an audit of this batch finds. Several optimizers each see a part only."""
        if self._looked or self.monitor is None:
            return
        self._looked = True
        if self.monitor.step == 0 and len(trainer.optimizers) == 1:
            from gradcheck_doctor.observe.probe import hidden_by_zeros

            if not hidden_by_zeros(pl_module):
                self._judge(trainer, first=True)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.monitor is None:
            return
        taken = trainer.global_step - self._start             # the same on all ranks, whatever was observed on each
        if taken >= self._next_check:
            self._next_check = 2 * max(taken, FIRST_CHECK)
            self._judge(trainer)
            self._log(trainer)
        elif getattr(getattr(trainer, "_logger_connector", None), "should_update_logs", False):
            self._log(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._finish(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if self.monitor is not None and not isinstance(exception, UnhealthyTraining):
            self.monitor.ranks.final_wait = 2.0               # the other ranks may hang in a collective
            self._finish(trainer, ended=True)
        self._detach()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._detach()

    def report(self) -> Any:
        """The report of what was seen so far; in distributed training rank 0's is about all ranks."""
        return self._report("run")

    # -- ourselves --------------------------------------------------------------------------------------------------------------------------
    def _attach(self, trainer: Any, pl_module: Any) -> None:
        from gradcheck_doctor.integrations.lightning_metrics import Metrics
        from gradcheck_doctor.observe import facts
        from gradcheck_doctor.observe.provenance import current_log
        from gradcheck_doctor.observe.watch import Monitor

        try:
            if getattr(trainer.strategy, "model", None) is not None:
                facts.refuse(trainer.strategy.model)
            self.monitor = Monitor([pl_module], trainer.optimizers, self.every, log=current_log(), channel="lightning").attach()
        except ProbeError as error:
            if trainer.is_global_zero:
                warnings.warn(f"gradcheck_doctor does not watch this training: {error}", stacklevel=2)
            return
        self._metrics = Metrics(self.monitor)
        self._looked, self._start, self._next_check = False, trainer.global_step, FIRST_CHECK

    def _report(self, kind: str) -> Any:
        from gradcheck_doctor.report.report import RankReport, Report
        from gradcheck_doctor.session import examine

        if self.monitor is None:
            raise DoctorError("nothing was observed yet: the callback starts with training")
        recording = self.monitor.gathered(kind)
        examination = examine(recording, recording.model_class or "model")
        return (RankReport if self.monitor.ranks.rank else Report)(examination.report, recording)

    def _detach(self) -> None:
        if self.monitor is not None:
            self.monitor.detach()

    def _finish(self, trainer: Any, ended: bool = False) -> None:
        if self.monitor is None:
            return
        self._detach()
        report = self._judge(trainer, ended=ended)
        if report is None or not trainer.is_global_zero:
            return
        if not ended:
            self._log(trainer)
        if self.output is not None:
            try:
                os.makedirs(os.path.dirname(os.path.abspath(self.output)), exist_ok=True)
                report.write(os.fspath(self.output))
            except OSError as error:                    # the training is done: it is not lost for want of a place for its report
                warnings.warn(f"gradcheck_doctor could not write the report to {self.output} ({error.strerror or error})", stacklevel=2)

    def _judge(self, trainer: Any, first: bool = False, ended: bool = False) -> Any:
        """Report findings that are new; act on errors as asked, on all ranks alike. Our own failure is said and training goes on."""
        report, message, errors = None, "", False
        try:
            report = self._report("audit" if first else "run")
            if trainer.is_global_zero:
                message, errors = self._news(report)
                if not first:
                    self._metrics.learn(report)
        except Exception as error:
            warnings.warn(f"gradcheck_doctor could not judge this training: {type(error).__name__}: {error}", stacklevel=2)
        if message:
            when = "before the first step" if first else f"at step {self.monitor.step}"
            message = f"gradcheck_doctor {when}:\n{message}"
        if self.on_finding != "warn" and not ended:
            message, errors = self._agreed(trainer, message, errors)
            if errors and self.on_finding == "raise":
                self._detach()
                raise UnhealthyTraining(message)
            if errors:
                trainer.should_stop = True
        if message and trainer.is_global_zero:
            warnings.warn(message, stacklevel=2)
        return report

    @staticmethod
    def _agreed(trainer: Any, message: str, errors: bool) -> tuple[str, bool]:
        """Rank 0's judgement on every rank: a rank that stops alone would leave the others waiting."""
        if trainer.world_size < 2:
            return message, errors
        agreed: tuple[str, bool] = trainer.strategy.broadcast((message, errors), 0)
        return agreed

    def _news(self, report: Any) -> tuple[str, bool]:
        """(text of the findings not said yet, whether one of them is an error)."""
        serious = [f for f in report.findings if f.severity != "info"]
        explained = report.data.explained
        new = [f for f in serious if f.fingerprint not in self._known and f.fingerprint not in explained]
        self._known |= {f.fingerprint for f in serious}
        lines = [f"{' '.join(x for x in (f.code, f.rule, f.severity, f.module) if x)}: {f.message}" + "".join(f"; try: {x.prescription.title}" for x in f.fixes[:1])
                 for f in new]
        return "\n".join(lines), any(f.severity == "error" for f in new)

    def _log(self, trainer: Any) -> None:
        """A few aggregated numbers; the trainer's loggers decide where they go."""
        if not self.log_metrics or not trainer.loggers or not trainer.is_global_zero:
            return
        metrics = self._metrics.take()
        epoch_loop = getattr(getattr(trainer, "fit_loop", None), "epoch_loop", None)
        step = getattr(epoch_loop, "_batches_that_stepped", trainer.global_step)     # the axis of what the module itself logs
        for logger in trainer.loggers if metrics else ():
            logger.log_metrics(metrics, step=step)
