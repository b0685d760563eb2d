"""One look at a model: forward, backward, and if asked a few throw-away training steps; the model comes back untouched."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gradcheck_doctor.errors import ProbeError
from gradcheck_doctor.observe.provenance import ConstructionLog
from gradcheck_doctor.observe.trials import adam, train_and_eval
from gradcheck_doctor.observe.untouched import untouched
from gradcheck_doctor.observe.watch import Monitor
from gradcheck_doctor.records.recording import InputRecord, Recording

LIMIT = 4_096          # elements sampled of each tensor: a probe looks closer than a watch
WARM_STEPS = 3


def probe(model: nn.Module, compute_loss: Callable[[nn.Module], Tensor], *, steps: int = 0,
          make_optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None, log: ConstructionLog | None = None, seed: int = 0,
          synthetic: bool = False, facts: dict[str, Any] | None = None) -> Recording:
    """Record one forward and backward of `model`, or `steps` training steps of it.

    `compute_loss(model)` runs the forward and returns a scalar. Parameters, buffers, gradients, flags and random state are restored, also when
    it raises. A weight that starts at exactly 0 (a zero-initialised head) hides everything in front of it, so then a few throw-away steps are
    taken and recorded as steps 1 to 3.
    """
    if any(p.is_meta for p in model.parameters()):
        raise ProbeError("The model is on the meta device: it has shapes but no values. Build it on a real device, or model.to_empty() and load weights.")
    monitor = Monitor([model], every=1, log=log, limit=LIMIT, exact=True)
    with untouched(model), torch.enable_grad():
        torch.manual_seed(seed)
        modes: dict[str, float] = {}
        warm = not steps and hidden_by_zeros(model)
        if steps or warm:
            optimizer = make_optimizer(model) if make_optimizer is not None and steps else _default_optimizer(model)
            with monitor:
                for _ in range(steps or WARM_STEPS + 1):
                    optimizer.zero_grad()
                    loss = compute_loss(model)
                    _backward(loss, model)
                    optimizer.step()
            recording = monitor.recording("audit")
            modes = train_and_eval(model, compute_loss) if steps else {}
        else:
            with monitor:
                _backward(compute_loss(model), model)
                recording = monitor.first_look()
    _check(recording, model, monitor)
    inputs = tuple(replace(i, synthetic=synthetic) for i in recording.inputs)
    probe_facts = {**(facts or {}), "seed": seed, "steps": steps, "torch": torch.__version__, **({"warmed": WARM_STEPS} if warm else {})}
    optimizers = recording.optimizers if steps else ()
    return replace(recording, inputs=_inputs(inputs), probe=probe_facts, optimizers=optimizers, total_steps=steps,
                   notes={**recording.notes, "warmed": warm, **({"train_eval": modes} if modes else {})},
                   parameters=recording.parameters if steps else tuple(replace(p, in_optimizer=None) for p in recording.parameters))


def _inputs(inputs: tuple[InputRecord, ...]) -> tuple[InputRecord, ...]:
    return inputs


def _check(recording: Recording, model: nn.Module, monitor: Monitor) -> None:
    if monitor.observer.failure is not None and not recording.operations:
        raise ProbeError(f"observing failed: {monitor.observer.failure!r}; please report this with the model") from monitor.observer.failure


def hidden_by_zeros(model: nn.Module) -> bool:
    """A trainable weight matrix of exactly zeros, or a scale near 0 (zero-gamma, LayerScale), beside others that are not."""
    weights = [p for p in model.parameters() if p.requires_grad and p.numel() > 1]
    matrices = [p for p in weights if p.dim() >= 2]
    zeros = [p for p in matrices if not bool(p.detach().any())]
    scales = [p for m in model.modules() for n, p in m.named_parameters(recurse=False)
              if "bias" not in n and p.dim() == 1 and p.requires_grad and p.detach().abs().max() < 0.05]
    return bool(zeros or scales) and len(zeros) < len(matrices)


def _default_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    if not any(p.requires_grad for p in model.parameters()):
        raise ProbeError(_no_gradient(model))
    return adam(model)


def _backward(loss: Tensor, model: nn.Module) -> None:
    if not loss.requires_grad:
        raise ProbeError(_no_gradient(model))
    loss.backward()  # type: ignore[no-untyped-call]


def _no_gradient(model: nn.Module) -> str:
    parameters = list(model.parameters())
    frozen = sum(not p.requires_grad for p in parameters)
    if parameters and frozen == len(parameters):
        return f"no gradient can be measured: all {frozen} parameters are frozen (requires_grad=False). Unfreeze what is to be trained."
    return ("no gradient can be measured: the loss does not depend on any trainable parameter.\n"
            "The forward may run under torch.no_grad(), detach its result, or return no tensor that depends on the parameters.")
