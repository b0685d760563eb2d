"""What a loss was computed from: facts about the prediction and the targets."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradcheck_doctor.observe.graph import Graph, Node
from gradcheck_doctor.records.recording import LossRecord

RANGES = {"relu": (0.0, float("inf")), "sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "softmax": (0.0, 1.0), "softplus": (0.0, float("inf")),
          "hardtanh": (-1.0, 1.0), "relu6": (0.0, 6.0), "hardsigmoid": (0.0, 1.0)}
_PASS_THROUGH = frozenset({"shape", "dropout"})


def is_residual(args: tuple[Any, ...]) -> bool:
    """prediction - target: one side carries a gradient, the other does not."""
    return len(args) == 2 and all(isinstance(a, Tensor) and a.numel() > 1 for a in args) and args[0].requires_grad != args[1].requires_grad


def loss_record(node: Node, graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> LossRecord:
    """Facts about one call of a loss function, from its arguments."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    prediction = kwargs.get("input", tensors[0] if tensors else None)
    target = kwargs.get("target", tensors[1] if len(tensors) > 1 else None)
    if node.op == "sub" and isinstance(target, Tensor) and target.requires_grad:
        prediction, target = target, prediction
    facts: dict[str, Any] = {}
    if isinstance(prediction, Tensor) and prediction.numel():
        values = prediction.detach().float()
        facts |= {"input_shape": tuple(prediction.shape), "input_min": values.min().item(), "input_max": values.max().item(),
                  "classes": _classes(node.op, prediction)}
    if isinstance(target, Tensor) and target.numel():
        facts |= _target_facts(target, reach(prediction, graph))
    return LossRecord(
        operation=node.index, op=node.op, value=output.detach().float().mean().item() if output.numel() else None, span=node.span,
        reduction=str(node.attributes.get("reduction", "mean")), label_smoothing=float(node.attributes.get("label_smoothing", 0.0) or 0.0),
        weighted=any(isinstance(kwargs.get(k), Tensor) for k in ("weight", "pos_weight")), requires_grad=output.requires_grad, **facts)


def _classes(op: str, prediction: Tensor) -> int | None:
    if op not in ("cross_entropy", "nll_loss"):
        return None
    return prediction.shape[1] if prediction.dim() > 1 else prediction.shape[0]


def _target_facts(target: Tensor, bounds: tuple[float, float] | None) -> dict[str, Any]:
    values = target.detach().double().flatten()[:200_000]
    integer = bool((values == values.round()).all())
    one_hot = target.dim() == 2 and target.shape[1] > 1 and integer and bool((target.detach().sum(dim=1) == 1).all()) and bool((values >= 0).all())
    repeated = target.dim() == 2 and target.shape[1] > 1 and bool((target == target[:, :1]).all())
    outside = None
    if bounds is not None:
        outside = ((values < bounds[0] - 1e-6) | (values > bounds[1] + 1e-6)).double().mean().item()
    return {"target_shape": tuple(target.shape), "target_dtype": str(target.dtype).removeprefix("torch."), "target_min": values.min().item(),
            "target_max": values.max().item(), "target_mean": values.mean().item(), "target_std": values.std(unbiased=False).item(),
            "target_integer": integer, "target_one_hot": one_hot, "target_repeated": repeated, "target_distinct": min(1000, len(torch.unique(values[:20_000]))),
            "target_negative_fraction": (values < 0).double().mean().item(), "target_outside": outside}


def reach(prediction: Any, graph: Graph) -> tuple[float, float] | None:
    """The range that the last activation before `prediction` can reach, None when it ends in anything else."""
    index = graph.maker(prediction) if isinstance(prediction, Tensor) else None
    while index is not None:
        node = graph.nodes[index]
        if node.category == "activation":
            return RANGES.get(node.op)
        if node.category not in _PASS_THROUGH or not node.producers:
            return None
        index = node.producers[0]
    return None
