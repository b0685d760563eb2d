"""Where observing, judging, curing and reporting meet: audit, run, and what they share."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gradcheck_doctor.records.findings import Finding, LayerRow, ReportData
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.records.summaries import Summary

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gradcheck_doctor.config import Config
    from gradcheck_doctor.targets import Target

#: Called with the report of every `audit` while it is set; the pytest plugin lists them.
on_audit: ContextVar[Callable[[ReportData], None] | None] = ContextVar("on_audit", default=None)
TABLED = frozenset({"layer", "activation", "norm", "recurrent", "embedding", "attention", "merge", "loss"})


@dataclass(frozen=True)
class Examination:
    """A report together with what it was concluded from."""

    report: ReportData
    recording: Recording
    extra: Mapping[str, Any] = field(default_factory=dict)


def examine(recording: Recording, target: str, config: Config | None = None) -> Examination:
    """Apply the rules to a recording and lay out the report."""
    from gradcheck_doctor import __version__
    from gradcheck_doctor.rules.engine import diagnose

    readings: dict[str, float] = {}
    findings = diagnose(recording, config=config, readings=readings)
    findings, suppressed = _without_suppressed(findings, config)
    report = ReportData(
        target=target, kind=recording.kind,
        model={"class": recording.model_class, "parameters": recording.parameter_count, "trainable_parameters": recording.trainable_count,
               "device": recording.device, "dtype": recording.dtype},
        probe=recording.probe, findings=findings, layers=layer_rows(recording, findings), curves=_curves(recording),
        blind_spots=recording.blind_spots, suppressed=suppressed, version=__version__, readings=readings)
    return Examination(report, recording)


def _without_suppressed(findings: tuple[Finding, ...], config: Config | None) -> tuple[tuple[Finding, ...], int]:
    from gradcheck_doctor.suppress import is_suppressed

    per_file = config.per_file_ignores if config is not None else {}
    kept = tuple(f for f in findings if not is_suppressed(f, per_file))
    return kept, len(findings) - len(kept)


def _curves(recording: Recording) -> dict[str, tuple[tuple[float, float], ...]]:
    curves: dict[str, tuple[tuple[float, float], ...]] = {}
    if recording.curve:
        curves["loss"] = tuple((float(s), v) for s, v in _thinned(recording.curve))
    norms = [(float(s.step), s.grad_norm) for s in recording.steps if s.grad_norm is not None]
    if norms and recording.kind == "run":
        curves["grad_norm"] = tuple(_thinned(norms))
    return curves


def _thinned(points: Any, limit: int = 500) -> list[Any]:
    points = list(points)
    step = max(1, math.ceil(len(points) / limit))
    return points[::step]


def layer_rows(recording: Recording, findings: tuple[Finding, ...]) -> tuple[LayerRow, ...]:
    """The layer table: operations that compute, in order, with the codes that name them."""
    codes: dict[int, list[str]] = {}
    for finding in findings:
        for index in finding.operations:
            codes.setdefault(index, []).append(finding.code)
    return tuple(_layer_row(recording, o, codes.get(o.index, [])) for o in recording.operations
                 if o.category in TABLED and (o.category != "merge" or o.attributes.get("residual")))


def _layer_row(recording: Recording, operation: Operation, codes: list[str]) -> LayerRow:
    seen = operation.first
    weight = next((p for n in operation.parameters if (p := recording.parameter.get(n)) is not None and len(p.shape) > 1), None)
    module = recording.module.get(operation.module)
    location = module.built if module is not None and module.leaf and module.built is not None else operation.called
    gradient = next((s.gradient for s in operation.observed if s.gradient is not None), None)
    return LayerRow(
        module=operation.module, op=operation.op, order=operation.index, on_spine=operation.on_spine, location=location,
        forward=_forward(seen.forward) if seen is not None and seen.forward is not None else {},
        gradient={"norm": gradient.norm, "rms": gradient.rms} if gradient is not None else {},
        weight={} if weight is None else {"std": weight.std, "scheme": weight.scheme, "gain": weight.gain, "init": weight.init_span},
        verdict=", ".join(dict.fromkeys(codes)))


def _forward(summary: Summary) -> dict[str, float]:
    return {"mean": summary.mean, **({"std": summary.std} if summary.count > 1 else {}), "zero_fraction": summary.zero_fraction}


def audit_target(target: Target, *, config: Config | None = None, steps: int = 0, overfit: bool = False) -> Examination:
    """Probe a resolved target with its batch and judge it; with `overfit` also try to learn that batch by heart."""
    from gradcheck_doctor.observe.probe import probe

    recording = probe(target.model, target.compute_loss, steps=steps, make_optimizer=target.optimizer_factory, log=target.log,
                      seed=target.seed, synthetic=target.synthetic, facts=dict(target.choices))
    if overfit:
        from gradcheck_doctor.observe import trials
        from gradcheck_doctor.targets.memory import default_optimizer

        given = None if target.optimizer_factory is default_optimizer else target.optimizer_factory
        tried = trials.overfit(target.model, target.compute_loss, make_optimizer=given, seed=target.seed)
        recording = replace(recording, notes={**recording.notes, "overfit": tried},
                            probe={**recording.probe, "overfit": f"loss {tried['first']:.3g} to {tried['last']:.3g} in {tried['steps']} steps"})
    return examine(recording, target.name, config)


def audit(model: nn.Module, batch: Any, loss: Callable[..., Tensor] | None = None, *, steps: int = 0, overfit: bool = False,
          seed: int = 0, optimizer: Callable[[nn.Module], Any] | None = None, select: Any = (), ignore: Any = ()) -> Any:
    """One-shot audit of a model in memory; it comes back exactly as it was.

    Args:
        model: any nn.Module.
        batch: what the model takes: a tensor, a tuple of positional inputs or a dict of keyword inputs; with a loss the pair (inputs, targets).
        loss: called as loss(output, targets); without it a random unit cotangent on the outputs.
        steps: also train a throw-away copy that many steps.
        overfit: also try to learn the batch by heart, in 300 steps of a throw-away copy.
        seed: for the cotangent and for dropout.
        optimizer: model -> optimizer, used when steps > 0 and by overfit.
        select, ignore: rule codes, prefixes or names.

    Returns:
        A `Report`: print it, show it in a notebook, `to_json()`, `assert_healthy()`.

    Raises:
        BatchError, ProbeError: the batch does not fit, or no gradient can be measured.
        ConfigError: an option has no such value.
    """
    from gradcheck_doctor.config import Config
    from gradcheck_doctor.errors import ConfigError
    from gradcheck_doctor.report.report import Report
    from gradcheck_doctor.targets import target_of_model

    if steps < 0:
        raise ConfigError(f"steps must be 0 or more, not {steps}")
    target = target_of_model(model, batch, loss, seed=seed, optimizer=optimizer)
    config = replace(Config(), select=selectors(select), ignore=selectors(ignore))
    examination = audit_target(target, config=config, steps=steps, overfit=overfit)
    if (listener := on_audit.get()) is not None:
        listener(examination.report)
    return Report(examination.report, examination.recording, model)


def selectors(given: Any) -> tuple[str, ...]:
    """Codes, prefixes or names of rules or treatments; a single one may stand alone."""
    return (given,) if isinstance(given, str) else tuple(given)


def assert_healthy(model: nn.Module, batch: Any, loss: Any = None, *, fail_on: str = "warning", **options: Any) -> Any:
    """Audit `model` and raise AssertionError with the findings when there is one at or above `fail_on`; returns the report."""
    report = audit(model, batch, loss, **options)
    report.assert_healthy(fail_on=fail_on)
    return report
