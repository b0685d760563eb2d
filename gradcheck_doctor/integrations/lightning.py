"""DoctorCallback: watches a Trainer's training without changing it.

The class inherits from every Lightning `Callback` that is already imported (or importable), so both Trainers and both CLIs accept it.
"""
from __future__ import annotations

import importlib
import sys
import warnings
from statistics import median
from typing import Any, Literal

from gradcheck_doctor.errors import ConfigError, DoctorError

FIRST_CHECK = 8        # optimizer steps before the first judgement; then after each doubling


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

    Args:
        every: observe each N-th optimizer step, or "auto" (dense at the start, then rarer, within 1 % of the time).
        on_finding: "warn" prints, "stop" ends training after the step, "raise" raises UnhealthyTraining. Errors only for stop and raise.
        treat: "off"; cures at fit start are not offered yet.
        output: file for the report at the end (format from the suffix).
        log_metrics: log doctor/grad_norm, doctor/update_ratio, doctor/dead_fraction, doctor/findings through the trainer's loggers.

    Raises:
        ConfigError: an option has no such value.
    """

    def __init__(self, every: int | str = "auto", on_finding: Literal["warn", "raise", "stop"] = "warn", treat: Literal["off"] = "off",
                 output: str | None = None, log_metrics: bool = True) -> None:
        super().__init__()
        if on_finding not in ("warn", "raise", "stop"):
            raise ConfigError(f"on_finding must be warn, raise or stop, not {on_finding!r}")
        if treat != "off":
            raise ConfigError(f"treat={treat!r} is not available; use treat='off'")
        self.every, self.on_finding, self.output, self.log_metrics = every, on_finding, output, log_metrics
        self.monitor: Any = None
        self._known: set[str] = set()
        self._next_check = FIRST_CHECK

    @property
    def state_key(self) -> str:
        return f"DoctorCallback[every={self.every}]"

    def state_dict(self) -> dict[str, Any]:
        """Findings already reported, so that a resumed run does not repeat them."""
        return {"known": sorted(self._known)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._known = set(state_dict.get("known", ()))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        from gradcheck_doctor.observe.provenance import current_log
        from gradcheck_doctor.observe.watch import Monitor

        self.monitor = Monitor([pl_module], trainer.optimizers, self.every, log=current_log()).attach()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.monitor is None:
            return
        if self.monitor.step >= self._next_check:
            self._next_check = 2 * max(self.monitor.step, FIRST_CHECK)
            self._judge(trainer)
            self._log(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._finish(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if self.monitor is not None and not isinstance(exception, UnhealthyTraining):
            self._finish(trainer, quiet=True)
        self._detach()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._detach()

    def report(self) -> Any:
        """The report of what was seen so far."""
        from gradcheck_doctor.report.report import Report
        from gradcheck_doctor.session import examine

        if self.monitor is None:
            raise DoctorError("nothing was observed yet: the callback starts with training")
        recording = self.monitor.gathered()
        examination = examine(recording, recording.model_class or "model")
        return Report(examination.report, recording)

    def _detach(self) -> None:
        if self.monitor is not None:
            self.monitor.detach()

    def _finish(self, trainer: Any, quiet: bool = False) -> None:
        from gradcheck_doctor.report.render import Style, format_of, render

        if self.monitor is None:
            return
        self._detach()
        report = self._judge(trainer, quiet=quiet)
        if self.output is not None and trainer.is_global_zero:
            with open(self.output, "w", encoding="utf-8") as file:
                file.write(render(report.data, format_of(self.output) or "text", Style({})))

    def _judge(self, trainer: Any, quiet: bool = False) -> Any:
        """Report findings that are new; act on errors as asked."""
        report = self.report()
        explained = {fp for f in report.findings for fp in f.related}
        new = [f for f in report.findings if f.severity != "info" and f.fingerprint not in self._known and f.fingerprint not in explained]
        self._known |= {f.fingerprint for f in report.findings if f.severity != "info"}
        if not new or not trainer.is_global_zero:
            return report
        message = "\n".join(f"{f.code} {f.rule} {f.severity} {f.module}: {f.message}" + "".join(f"; try: {x.prescription.title}" for x in f.fixes[:1]) for f in new)
        errors = any(f.severity == "error" for f in new)
        if errors and self.on_finding == "raise" and not quiet:
            self._detach()
            raise UnhealthyTraining(message)
        if errors and self.on_finding == "stop":
            trainer.should_stop = True
        warnings.warn(f"gradcheck_doctor at step {self.monitor.step}:\n{message}", stacklevel=2)
        return report

    def _log(self, trainer: Any) -> None:
        """A few aggregated numbers; the trainer's loggers decide where they go."""
        if not self.log_metrics or not trainer.loggers:
            return
        norms = [s.grad_norm for s in self.monitor.steps[-8:] if s.grad_norm is not None]
        ratios = [rows[-1].update_ratio for rows in self.monitor.parameter_steps.values() if rows and rows[-1].update_ratio is not None]
        metrics = {"doctor/findings": float(len(self._known))}
        if norms:
            metrics["doctor/grad_norm"] = norms[-1]
        if ratios:
            metrics["doctor/update_ratio"] = median(ratios)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
