"""treat="safe": an audit of the first batch before training, and its safe cures on the live model."""
from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from gradcheck_doctor.errors import ProbeError
from gradcheck_doctor.theory.schemes import TORCH_DEFAULT

DRAWN_ONCE = 1         # in-place writes to a weight that torch's default initialisation makes; loading makes one more


def treat_first(trainer: Any, pl_module: Any, batch: Any) -> Any:
    """Audit the module's training_step on `batch` (the module comes back untouched), apply the safe cures and say what was done.

    Returns:
        The treatments, reversible; None where treating is refused: on a resumed run, on several ranks, with manual optimization.
    """
    refusal = _refusal(trainer, pl_module)
    if refusal:
        warnings.warn(f"gradcheck_doctor treats nothing: {refusal}", stacklevel=3)
        return None
    from gradcheck_doctor.live import treat
    from gradcheck_doctor.observe.probe import probe
    from gradcheck_doctor.observe.provenance import current_log
    from gradcheck_doctor.report.report import Report
    from gradcheck_doctor.session import examine

    versions = {name: parameter._version for name, parameter in pl_module.named_parameters()}
    try:
        with _muted(trainer, pl_module):
            recording = probe(pl_module, _loss_of(trainer, batch), log=current_log())
    except Exception as error:
        warnings.warn(f"gradcheck_doctor treats nothing: the first batch could not be probed: {type(error).__name__}: {error}", stacklevel=3)
        return None
    again = [p.name for p in recording.parameters if p.scheme == TORCH_DEFAULT and versions.get(p.name, 0) > DRAWN_ONCE]
    if again:
        warnings.warn(f"gradcheck_doctor treats nothing: {again[0]} is as torch's default draws it, and yet was written to again, as by load_state_dict; "
                      "loaded weights are never initialised again", stacklevel=3)
        return None
    report = Report(examine(recording, recording.model_class).report, recording)
    done = treat(pl_module, report, trainer.optimizers)
    lines = [f"{change.treatment}: {change.title}" for change in done] + [f"not done ({r.reason}): {r.title}" for r in done.refusals]
    if lines:
        warnings.warn("gradcheck_doctor before the first step:\n" + "\n".join(lines), stacklevel=3)
    return done


def _refusal(trainer: Any, pl_module: Any) -> str:
    if trainer.ckpt_path is not None or trainer.global_step > 0:
        return "this run is resumed from a checkpoint, and trained weights are never initialised again"
    if trainer.world_size > 1:
        return "each rank would change its own copy of the model; treat it before it is distributed (doctor.treat)"
    if not pl_module.automatic_optimization:
        return "with manual optimization the training step would step the optimizers while probing; use doctor.audit and doctor.treat"
    return ""


def _loss_of(trainer: Any, batch: Any) -> Callable[[Any], Tensor]:
    def compute(module: Any) -> Tensor:
        with trainer.precision_plugin.train_step_context():
            result = module.training_step(batch, 0)
        loss = result["loss"] if isinstance(result, dict) else result
        if not isinstance(loss, Tensor):
            raise ProbeError("training_step returned no loss for the first batch")
        return loss

    return compute


@contextlib.contextmanager
def _muted(trainer: Any, pl_module: Any) -> Iterator[None]:
    """Nothing of the probe's training_step is logged or printed."""
    loggers = trainer.loggers
    names = ("log", "log_dict")
    try:
        for name in names:
            object.__setattr__(pl_module, name, lambda *a, **k: None)
        trainer.loggers = []
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        trainer.loggers = loggers
        for name in names:
            pl_module.__dict__.pop(name, None)
