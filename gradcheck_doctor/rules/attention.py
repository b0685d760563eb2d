"""Attention that chooses one key from the first step on: its scores are so large that the softmax lets no gradient back to queries and keys."""
from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.records.ways import LAYERS, before, behind
from gradcheck_doctor.rules.flow import untrained

MATRIX = frozenset({"matmul", "mm", "bmm", "einsum"})         # products of two matrices
PRODUCTS = MATRIX | {"baddbmm"}
CHOSEN = 0.9           # sum of squared weights of a row, mean over the rows: 1 where each row chooses one key, 1/keys where none is preferred
SPREAD = 4.0           # of the scores: with fewer the choice is that of a mask
FEWEST_KEYS = 4


class HardAttention(NamedTuple):
    """A softmax over scores, as it was before the first update."""

    softmax: Operation
    product: Operation                      # of queries and keys
    layers: tuple[Operation, ...]           # that make the queries and keys
    chosen: float                           # see CHOSEN
    spread: float | None                    # standard deviation of the scores, where they were measured
    divided: bool                           # something is done to the scores between product and softmax
    width: int                              # of a query


def hard_attention(recording: Recording) -> Iterator[HardAttention]:
    """Softmaxes between two matrix products whose first weights are those of a hard choice."""
    for operation in recording.operations:
        keys = _keys(operation)
        seen = operation.first
        if keys < FEWEST_KEYS or seen is None or seen.forward is None or not operation.requires_grad:
            continue
        chosen = keys * seen.forward.rms ** 2
        if chosen < CHOSEN or not any(o.op in PRODUCTS for o in behind(recording, [operation.index], _on_way)):
            continue
        ways = list(before(recording, [operation.index], lambda o: _on_way(o) and o.op not in PRODUCTS))
        product = next((o for o in ways if o.op in PRODUCTS), None)
        spread = next((o.first.forward.std for o in ways if o.first is not None and o.first.forward is not None and o.first.forward.finite), None)
        masked = any(o.op in ("masked_fill", "where") or o.category == "merge" for o in ways)
        if product is None or (masked if spread is None else spread < SPREAD):
            continue
        layers = tuple(o for o in before(recording, [product.index], lambda o: o.category not in LAYERS) if o.category == "layer")
        if layers and untrained(recording, layers):
            between = any(o.category == "scale" for o in ways)
            yield HardAttention(operation, product, layers, chosen, spread, between, product.input_shapes[0][-1] if product.input_shapes else 0)


def of_scores(recording: Recording, operation: Operation) -> bool:
    """It is taken of the product of two values that the model computes, such as queries and keys; an adjacency matrix that is given is none."""
    ways = before(recording, [operation.index], lambda o: (_on_way(o) or o.category == "layer") and o.op not in PRODUCTS)
    return any(o.op in PRODUCTS and not o.parameters and len({i for i in o.producers if recording.operations[i].category != "input"}) >= 2 for o in ways)


def of_slots(recording: Recording, operation: Operation) -> bool:
    """It chooses among rows that the model learns: taken of products with one matrix, without a bias, and multiplied with another; no layers of torch's.

    A memory of slots, prototypes, a codebook: softmax(q K^T) V with parameters for K and V.
    """
    ways = list(before(recording, [operation.index], lambda o: o.category in ("shape", "scale", "dropout") and not o.parameters))
    scores = next((o for o in ways if o.op in PRODUCTS), None)
    values = next((o for o in behind(recording, [operation.index], lambda o: o.category in ("shape", "dropout")) if o.op in MATRIX), None)
    return scores is not None and values is not None and bool(scores.parameters) and bool(values.parameters)


def _keys(operation: Operation) -> int:
    """Over how many values a softmax goes, 0 for everything else."""
    axis = operation.attributes.get("dim")
    if operation.op != "softmax" or not isinstance(axis, int) or not -len(operation.shape) <= axis < len(operation.shape):
        return 0
    return operation.shape[axis]


def _on_way(operation: Operation) -> bool:
    return operation.category in ("shape", "scale", "dropout", "merge")
