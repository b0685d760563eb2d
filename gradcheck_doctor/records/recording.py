"""What was seen of one model (or of the models of one script): immutable, plain Python numbers, standard library only.

A `Recording` is all that a rule sees. `operations` are in order of first call; data flow is in `Operation.producers`.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gradcheck_doctor.records.sites import BlindSpot, Span
from gradcheck_doctor.records.summaries import Summary, Units


@dataclass(frozen=True)
class ModuleRecord:
    """One submodule: `path` as in named_modules ("" is the root), `type` its class name, `built` the expression that constructed it."""

    path: str
    type: str
    built: Span | None = None
    training: bool = True                    # flag at the first observed forward
    config: Mapping[str, Any] = field(default_factory=dict)   # its plain attributes: in_features, kernel_size, p, negative_slope, momentum, ...
    parameters: tuple[str, ...] = ()         # full names of its own parameters
    calls: int = 0                           # forwards on one observed step; 0 = never called
    aliases: tuple[str, ...] = ()            # other paths of the same (shared) module
    library: bool = False                    # its forward is defined in torch or another installed package, not in the user's files
    leaf: bool = True                        # it has no children


@dataclass(frozen=True)
class ParameterRecord:
    """One parameter as it was when first seen; `scheme` as theory.initialisation.recognise names it."""

    name: str
    module: str
    role: str                                # last part of the name: weight, bias, weight_hh_l0, in_proj_weight, ...
    shape: tuple[int, ...]
    count: int
    trainable: bool
    fan_in: int | None = None
    fan_out: int | None = None
    mean: float = 0.0
    std: float = 0.0
    rms: float = 0.0
    absmax: float = 0.0
    dtype: str = "float32"
    scheme: str = "unknown"                  # "torch default", "he normal", "zeros", "trained or loaded", ...
    gain: float | None = None                # sqrt(Var(w) fan_in): 1 keeps the variance of a linear layer
    rows_equal: bool = False                 # every output unit starts the same, and still is (or was a constant) after the steps seen
    as_one: bool = False                     # of the user's own class: its rows started equal, training moved them, and they are still equal
    orthogonal: bool = False
    spectral_radius: float | None = None     # recurrent square matrices only (largest over the gates of an RNN; None for LSTM/GRU)
    gate_bias: float | None = None           # LSTM b_ih or b_hh: mean of the forget-gate slice
    trained: bool = False                    # loaded or trained before we saw it: never re-initialise
    in_optimizer: bool | None = None         # None: no optimizer seen
    init_span: Span | None = None            # the line that initialised it explicitly (nn.init call), when seen
    tied_to: str | None = None               # the other name of the same tensor
    made: Span | None = None                 # where no nn.init call was seen: the statement that makes or fills it, as far as the source tells

    @property
    def origin(self) -> Span | None:
        """The user's expression that gave it its values, None where these are a layer's default."""
        return self.init_span or self.made


@dataclass(frozen=True)
class ParameterStep:
    """One parameter on one observed step. Gradients are unscaled, before clipping. nan or None where not seen."""

    step: int
    grad_norm: float | None                  # None: .grad was None
    update_ratio: float | None = None        # rms(change of w) / rms(w)
    weight_norm: float | None = None
    lost: float | None = None                # share of elements whose update was rounded away although the gradient is not 0
    zero_gradient: bool = False              # gradient exactly 0 everywhere
    finite: bool = True


@dataclass(frozen=True)
class Observed:
    """One operation's value on one observed step. `gradient` is dL/d(value); None when no gradient reached it."""

    step: int
    forward: Summary | None
    gradient: Summary | None = None
    dtype: str = "float32"


@dataclass(frozen=True)
class Operation:
    """One call site in the forward pass, in the user's terms.

    `module` is the innermost module whose forward made the call; `op` the function's name ("linear", "relu", "add", "cross_entropy");
    for a call inside a leaf torch module (nn.ReLU) `module` is that leaf. `ordinal` counts calls of the same (module, op) in one forward.
    """

    index: int
    op: str
    category: str                            # layer, activation, norm, dropout, merge, pool, attention, recurrent, embedding, loss, input, shape, reduce, scale, other
    module: str
    module_type: str                          # class name of `module`
    ordinal: int = 0
    producers: tuple[int, ...] = ()           # indices of the operations that made the inputs, in argument order
    parameters: tuple[str, ...] = ()          # names of the parameters used directly
    called: Span | None = None                # the user's expression that made the call
    shape: tuple[int, ...] = ()               # of the output
    input_shapes: tuple[tuple[int, ...], ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)   # dim, p, negative_slope, training, reduction, inplace, ...
    on_spine: bool = False
    requires_grad: bool = True
    observed: tuple[Observed, ...] = ()       # one an observed step, oldest first
    units: Units | None = None                # activations only, over all observed steps
    units_first: Units | None = None          # the same, over the first observed step(s) before any update
    units_last: Units | None = None           # the same, over the last window of observed steps
    repeats: int = 1                          # times this call site ran in one forward (a hand-written recurrence calls one line many times)
    time_gradients: tuple[float, ...] = ()    # rms of the gradient at each repeat, first call first (recurrences, inputs of a fused RNN over time)

    @property
    def site(self) -> str:
        """Name for people: the module path, and the op where the module alone does not say it."""
        return f"{self.module or '(root)'}:{self.op}"

    @property
    def first(self) -> Observed | None:
        return self.observed[0] if self.observed else None

    @property
    def last(self) -> Observed | None:
        return self.observed[-1] if self.observed else None


@dataclass(frozen=True)
class LossRecord:
    """The loss computation: which operation, on what, against which targets."""

    operation: int                            # index into operations, -1 if no known loss op was seen (a hand-written loss)
    op: str                                   # cross_entropy, nll_loss, mse_loss, binary_cross_entropy(_with_logits), l1_loss, ... or "scalar"
    value: float | None = None                # on the first observed step
    span: Span | None = None
    reduction: str = "mean"
    classes: int | None = None                # size of the class axis of the input
    input_shape: tuple[int, ...] = ()
    target_shape: tuple[int, ...] = ()
    target_dtype: str = ""
    target_min: float | None = None
    target_max: float | None = None
    target_mean: float | None = None
    target_std: float | None = None
    target_integer: bool = False              # all target values are whole numbers
    target_one_hot: bool = False              # each row of the target is one 1 and zeros
    target_repeated: bool = False             # two-dimensional, and every column is the same
    target_distinct: int | None = None        # number of distinct target values, capped at 1000
    target_negative_fraction: float | None = None
    target_outside: float | None = None       # fraction of targets outside the range that the last activation can reach
    input_min: float | None = None
    input_max: float | None = None
    label_smoothing: float = 0.0
    weighted: bool = False                    # class weights or pos_weight given
    requires_grad: bool = True


@dataclass(frozen=True)
class InputRecord:
    """One tensor that entered the model from outside."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    floating: bool
    summary: Summary | None = None
    synthetic: bool = False                   # made up by the doctor, so its statistics say nothing
    channel_std_min: float | None = None      # smallest and largest standard deviation over samples of one feature
    channel_std_max: float | None = None
    channel_absmean_max: float | None = None
    distinct_samples: int | None = None
    sparse_fraction: float | None = None      # share of zeros


@dataclass(frozen=True)
class OptimizerGroup:
    lr: float
    parameters: tuple[str, ...]
    weight_decay: float = 0.0
    momentum: float = 0.0
    eps: float | None = None
    betas: tuple[float, ...] = ()
    initial_lr: float | None = None


@dataclass(frozen=True)
class SchedulePlan:
    """What the scheduler of an optimizer was built for, and how often it was stepped."""

    steps: int = 0                            # calls of its step()
    planned: int | None = None                # steps it was built for, None where it has no end (OneCycleLR has)
    peak: float | None = None                 # largest rate of the first group that it is to reach, where its own settings say so
    mode: str = ""                            # of ReduceLROnPlateau: min or max
    watched: tuple[float, ...] = ()           # what that was stepped with, the first few hundred


@dataclass(frozen=True)
class OptimizerRecord:
    name: str                                 # class name: SGD, Adam, AdamW, ...
    groups: tuple[OptimizerGroup, ...]
    built: Span | None = None
    stepped: Span | None = None               # the user's line that calls step()
    steps: int = 0
    own: bool = False                         # not an optimizer of torch but statements of the loop
    scheduled: Span | None = None             # where its learning-rate scheduler was built
    schedule_stepped: Span | None = None      # the user's line that steps that
    plan: SchedulePlan = SchedulePlan()


@dataclass(frozen=True)
class Event:
    """Something the training loop did: kind is one of backward, clip_norm, clip_value, early_clip (before the step's first backward, or behind the
    last step: the same place in time). `step` is the optimizer step during which it happened; `order` counts events. A clip of gradients that still
    carry the loss scale has it as `detail["scale"]`."""

    kind: str
    step: int
    order: int = 0
    span: Span | None = None
    value: float | None = None                # threshold of a clip, scale of a scaler
    before: float | None = None               # global gradient norm before a clip
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepRecord:
    """One observed optimizer step."""

    step: int
    loss: float | None = None
    grad_norm: float | None = None            # global, unscaled, before clipping
    lr: float | None = None
    backwards: int = 1                        # backward passes since the last step (accumulation)
    stale_gradient: bool = False              # gradients left from the last step were still there at the first backward
    optimizer: int = 0


@dataclass(frozen=True)
class Recording:
    kind: str                                 # "audit" or "run"
    model_class: str = ""
    parameter_count: int = 0
    trainable_count: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    modules: tuple[ModuleRecord, ...] = ()
    parameters: tuple[ParameterRecord, ...] = ()
    operations: tuple[Operation, ...] = ()
    inputs: tuple[InputRecord, ...] = ()
    losses: tuple[LossRecord, ...] = ()
    optimizers: tuple[OptimizerRecord, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    parameter_steps: Mapping[str, tuple[ParameterStep, ...]] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    curve: tuple[tuple[int, float], ...] = ()  # (step, loss) of every step whose loss was seen, cheap, also between observed steps
    total_steps: int = 0                       # optimizer steps taken (0 for a plain probe)
    probe: Mapping[str, Any] = field(default_factory=dict)
    blind_spots: tuple[BlindSpot, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)   # facts for single rules: see observe.facts

    @cached_property
    def module(self) -> Mapping[str, ModuleRecord]:
        return {m.path: m for m in self.modules}

    @cached_property
    def parameter(self) -> Mapping[str, ParameterRecord]:
        return {p.name: p for p in self.parameters}

    @cached_property
    def consumers(self) -> Mapping[int, tuple[int, ...]]:
        """For each operation the indices of those that use its output."""
        found: dict[int, list[int]] = {o.index: [] for o in self.operations}
        for operation in self.operations:
            for producer in dict.fromkeys(operation.producers):
                if producer in found:
                    found[producer].append(operation.index)
        return {k: tuple(v) for k, v in found.items()}

    def operation(self, index: int) -> Operation:
        return self.operations[index]           # index equals position

    @property
    def spine(self) -> tuple[Operation, ...]:
        return tuple(o for o in self.operations if o.on_spine)

    def events_of(self, kind: str) -> tuple[Event, ...]:
        return tuple(e for e in self.events if e.kind == kind)
