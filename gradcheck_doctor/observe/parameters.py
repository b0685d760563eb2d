"""What each parameter was when we first saw it: fans, spread, which initialisation it follows, whether it was ever trained."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradcheck_doctor.observe.provenance import ConstructionLog, Initialisation
from gradcheck_doctor.observe.wrappers import class_name
from gradcheck_doctor.records.recording import ParameterRecord
from gradcheck_doctor.theory.fans import fans
from gradcheck_doctor.theory.initialisation import glorot_std, he_std
from gradcheck_doctor.theory.schemes import DEFAULT, LOADED, TOO_SMALL, Sample, SchemeMatch, recognise

SAMPLE = 4096
FAMILIES = {"xavier_uniform_": "glorot uniform", "xavier_normal_": "glorot normal", "kaiming_uniform_": "he uniform", "kaiming_normal_": "he normal"}
QUANTILES = 33
EXACT = 256              # rows up to which eigenvalues are computed
_GATES = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3, "RNN": 1, "RNNCell": 1}


def parameter_record(name: str, path: str, parameter: Tensor, owner: nn.Module | None, *, log: ConstructionLog | None = None,
                     trained: bool = False, recurrent: bool = False, columns: bool = False) -> ParameterRecord:
    """Facts about one parameter; `owner` is the module that holds it, `trained` what is known from outside (a loaded state dict).

    With `columns` the units are the columns of a matrix, (inputs, units), as in `x @ W`; else they are the rows, as in torch's layers.
    """
    role = name.rsplit(".", 1)[-1]
    shape = tuple(parameter.shape)
    base: dict[str, Any] = {"name": name, "module": path, "role": role, "shape": shape, "count": parameter.numel(),
                            "trainable": parameter.requires_grad, "dtype": str(parameter.dtype).removeprefix("torch.")}
    if parameter.is_meta or parameter.numel() == 0 or not parameter.is_floating_point() or is_lazy(parameter):
        return ParameterRecord(**base, trained=trained)
    value = parameter.detach()
    sharded = hasattr(value, "to_local")
    if sharded:
        value = value.to_local()  # type: ignore[attr-defined]
        if not value.numel():                                       # fewer rows than ranks: all of them are elsewhere
            return ParameterRecord(**base, trained=trained)
    kind = class_name(owner) if owner is not None else ""
    fan_in, fan_out = _fans(owner, kind, role, shape[::-1] if columns else shape)
    by_hand = owner is None or not type(owner).__module__.startswith("torch.")          # x @ W: its units may be columns
    sample = sample_of(value)
    match = recognise(sample, fan_in, fan_out, role=role)
    explicit = log.initialisations(parameter) if log is not None else []
    loaded = trained or (match.never_trained is False and not explicit)
    return ParameterRecord(
        **base, fan_in=fan_in, fan_out=fan_out, mean=sample.mean, std=sample.std, rms=math.hypot(sample.mean, sample.std),
        absmax=sample.absmax, scheme=LOADED if trained else _told(match, explicit, sample, fan_in, fan_out, by_hand),
        gain=None if fan_in is None else sample.std * math.sqrt(fan_in),
        rows_equal=units_equal(value) if by_hand else rows_equal(value), orthogonal=sample.orthogonal, trained=loaded, init_span=_span(explicit),
        spectral_radius=_spectral_radius(recurrent or kind in ("RNN", "RNNCell") and role.startswith("weight_hh"), value),
        gate_bias=None if sharded else _gate_bias(kind, role, value))


def _told(match: SchemeMatch, explicit: Sequence[Initialisation], sample: Sample, fan_in: int | None, fan_out: int | None, by_hand: bool) -> str:
    """The scheme's name; of several that fit the values, and where these are too few to tell, the one whose function was called, or the layer's default."""
    family = FAMILIES.get(explicit[-1].function, "") if explicit else ""
    if match.name == TOO_SMALL and family and fan_in and fan_out and _plain(explicit[-1]):
        std = he_std(fan_in) if family.startswith("he") else glorot_std(fan_in, fan_out)
        return family if abs(sample.std / std - 1.0) <= 3.0 / math.sqrt(2.0 * sample.count) else match.name
    wanted = family if explicit else "" if by_hand else DEFAULT
    return next((name for name in (match.name, *match.aliases) if wanted and name.startswith(wanted)), match.name)


def _plain(call: Initialisation) -> bool:
    """For ReLU by fan_in, or with gain 1: the scheme that goes by the function's name."""
    given = call.arguments
    first = given.get("gain", given.get("a", given.get("arg0")))
    if call.function.startswith("xavier"):
        return first in (None, 1)
    return (first in (None, 0) and given.get("mode", given.get("arg1", "fan_in")) == "fan_in"
            and given.get("nonlinearity", given.get("arg2", "relu")) in ("relu", "leaky_relu"))


def recognised_again(record: ParameterRecord, values: Sequence[float]) -> ParameterRecord:
    """The same parameter with its scheme told from `values`, elements of all its shards."""
    if record.fan_in is None and record.fan_out is None or record.scheme == LOADED:
        return record
    sample = replace(sample_of(torch.tensor(values)), count=record.count, orthogonal=record.orthogonal, absmax=record.absmax)
    match = recognise(sample, record.fan_in, record.fan_out, role=record.role)
    return replace(record, scheme=match.name, trained=match.never_trained is False and record.init_span is None)


def shard_values(parameter: Tensor) -> tuple[float, ...]:
    """Evenly spaced elements of this rank's shard; those of all ranks together make one sample."""
    if not hasattr(parameter, "to_local") or not parameter.is_floating_point():
        return ()
    flat = parameter.detach().to_local().reshape(-1)  # type: ignore[attr-defined]
    wanted = max(1, SAMPLE // parameter.device_mesh.size())  # type: ignore[attr-defined]
    return tuple(flat[:: max(1, flat.numel() // wanted)][:wanted].float().tolist())


def _span(explicit: list[Initialisation]) -> Any:
    return explicit[-1].span if explicit else None


def _fans(owner: nn.Module | None, kind: str, role: str, shape: tuple[int, ...]) -> tuple[int | None, int | None]:
    """Fans of a weight; those of the weight for its bias; None where the notion has no meaning (norms)."""
    weight = _held(owner, role.replace("bias", "weight")) if owner is not None and "bias" in role else None
    if weight is not None and weight.dim() >= 2:
        shape = tuple(weight.shape)
    if len(shape) < 2:
        return None, None
    groups = getattr(owner, "groups", 1) if isinstance(getattr(owner, "groups", 1), int) else 1
    try:
        return fans(kind, shape, groups=groups, gates=_GATES.get(kind, 1))
    except ValueError:
        return None, None


def _held(module: nn.Module, name: str) -> Tensor | None:
    """The parameter, or what a parametrization makes it from. Never the attribute: reading one that is made anew runs its code (a power iteration)."""
    if (found := module._parameters.get(name)) is not None:
        return found
    made_from = module._modules.get("parametrizations")
    originals = made_from._modules.get(name) if made_from is not None else None
    return max(originals._parameters.values(), key=lambda p: 0 if p is None else p.numel(), default=None) if originals is not None else None


def sample_of(value: Tensor) -> Sample:
    """Plain numbers that describe a weight, from at most 4,096 evenly spaced elements."""
    flat = value.reshape(-1)
    count = flat.numel()
    picked = flat[:: max(1, count // SAMPLE)][:SAMPLE].double()
    mean, std = picked.mean().item(), picked.std(unbiased=False).item()
    centred = picked - mean
    kurtosis = (centred**4).mean().item() / std**4 if std > 0 else math.nan
    finite = bool(torch.isfinite(picked).all())
    positions = torch.linspace(0, 1, QUANTILES, dtype=torch.float64)
    quantiles = tuple(torch.quantile(picked, positions).tolist()) if finite else ()
    return Sample(count=count, mean=mean, std=std, absmax=torch.maximum(flat.amax(), -flat.amin()).item(), kurtosis=kurtosis, quantiles=quantiles,
                  constant=bool((picked == picked[0]).all()) and bool((flat == flat[0]).all()), orthogonal=_orthogonal(value), distinct=len(torch.unique(picked)))


def _orthogonal(value: Tensor) -> bool:
    """Rows (or columns) orthogonal to each other with one common length."""
    if value.dim() < 2 or min(value.shape[0], value[0].numel()) < 2 or value.numel() > 4_000_000:
        return False
    matrix = value.reshape(value.shape[0], -1)
    if matrix.shape[0] > matrix.shape[1]:
        blocks, remainder = divmod(matrix.shape[0], matrix.shape[1])
        if remainder == 0 and blocks in (3, 4) and _orthogonal(value[: matrix.shape[1]]):
            return True
        matrix = matrix.T
    return _rows_orthogonal(matrix[:8], 1e-2) and _rows_orthogonal(matrix[:256], 1e-3)          # the few rows rule out nearly every matrix


def _rows_orthogonal(rows: Tensor, slack: float) -> bool:
    product = rows.double() @ rows.double().T
    scale = product.diagonal().mean()
    return bool(scale > 0 and (product / scale - torch.eye(len(product), device=product.device)).abs().max() < slack)


def rows_equal(value: Tensor, slack: float = 0.0) -> bool:
    """Every output row is the same, up to `slack` times the rms of all elements (products of equal rows may be rounded differently)."""
    if value.dim() < 2 or value.shape[0] < 2:
        return False
    if not slack:
        return torch.equal(value[0], value[1]) and bool((value == value[:1]).all())
    return bool((value - value[:1]).abs().max() <= slack * value.square().mean().sqrt())


def units_equal(value: Tensor, slack: float = 0.0) -> bool:
    """Every output unit is the same, whichever axis it is on: rows of a Linear, columns of x @ W."""
    return rows_equal(value, slack) or value.dim() == 2 and rows_equal(value.T, slack)


def first_row(value: Tensor) -> Tensor | None:
    """A copy of the row that all rows of the first axis longer than 1 equal; None where they differ or a row is a single number."""
    axis = next((i for i, size in enumerate(value.shape) if size > 1), None)
    if axis is None or math.prod(value.shape[axis + 1:]) < 2 or hasattr(value, "to_local") or not value.is_floating_point() or value.is_meta:
        return None
    rows = value.detach().flatten(0, axis)
    return rows[0].clone() if rows_equal(rows) else None


def moved_as_one(value: Tensor, start: Tensor) -> bool:
    """All rows, which were `start`, have moved, and by the same: they differ by less than a thousandth of the way they went."""
    moved = value.detach().reshape(-1, *start.shape) - start
    way = moved.square().mean().sqrt()
    return bool(torch.isfinite(way)) and bool(way > 0) and bool((moved - moved[:1]).abs().max() <= 1e-3 * way)


def stays_equal(value: Tensor, record: ParameterRecord) -> bool:
    """The units of a weight that started equal still are; of a constant other than 0, which no design asks for, that is taken for granted:
    rounding may tell the units apart in the end, but they learned as one for long."""
    return record.scheme.startswith("constant") or units_equal(value, 1e-3)


def _spectral_radius(recurrent: bool, value: Tensor) -> float | None:
    """Largest |eigenvalue| of a plain recurrent matrix."""
    if not recurrent or value.dim() != 2 or value.shape[0] != value.shape[1] or value.shape[0] > 1024 or not bool(torch.isfinite(value).all()):
        return None
    if value.shape[0] <= EXACT:
        return torch.linalg.eigvals(value.double().cpu()).abs().max().item()
    return _radius_by_powers(value.float())


def _radius_by_powers(matrix: Tensor, squarings: int = 10) -> float:
    """||A^k||^(1/k) with k = 2^squarings, Gelfand's formula: from above, within sqrt(n)^(1/k), 0.4 % of a matrix of 1,024 rows, at a quarter of the cost."""
    logarithm, share = 0.0, 1.0
    for left in range(squarings, -1, -1):
        norm = torch.linalg.vector_norm(matrix).item()
        if norm == 0.0:
            return 0.0
        logarithm, matrix = logarithm + share * math.log(norm), matrix / norm
        if left:
            matrix, share = matrix @ matrix, share / 2
    return math.exp(logarithm)


def _gate_bias(kind: str, role: str, value: Tensor) -> float | None:
    """Mean of the forget-gate slice of an LSTM bias (gate order of torch: input, forget, cell, output)."""
    if kind not in ("LSTM", "LSTMCell") or not role.startswith("bias"):
        return None
    size = value.numel() // 4
    return value[size: 2 * size].mean().item()
