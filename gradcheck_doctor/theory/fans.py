"""How many inputs one unit sums (fan_in) and how many units one input feeds (fan_out)."""
from __future__ import annotations

import math
from collections.abc import Sequence


def fans(kind: str, shape: Sequence[int], *, groups: int = 1, gates: int = 1) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight, as variance propagation needs them.

    Args:
        kind: class name of the layer ("Linear", "Conv2d", "ConvTranspose1d", "Embedding", "LSTM", "MultiheadAttention", ...).
        shape: shape of the weight as torch stores it.
        groups: of a convolution.
        gates: rows of a recurrent weight hold that many gates (LSTM 4, GRU 3, RNN 1); fans are those of one gate.

    Raises:
        ValueError: `shape` has fewer than two axes.

    >>> fans("Linear", (64, 100))
    (100, 64)
    >>> fans("Conv2d", (32, 8, 3, 3), groups=2)
    (72, 144)
    >>> fans("LSTM", (400, 50), gates=4)
    (50, 100)
    >>> fans("Embedding", (1000, 16))
    (1, 16)
    """
    if len(shape) < 2:
        raise ValueError(f"a weight of shape {tuple(shape)} has no fans; at least two axes are needed")
    field = math.prod(shape[2:])
    if kind.startswith("Embedding"):
        return 1, shape[1]                                 # a lookup sums nothing
    if "ConvTranspose" in kind:                            # stored (in, out / groups, ...)
        return shape[0] // groups * field, shape[1] * field
    if kind == "MultiheadAttention" and shape[0] == 3 * shape[1]:
        return shape[1], shape[0] // 3                     # packed query, key, value
    if kind == "Bilinear":
        return shape[1] * math.prod(shape[2:]), shape[0]
    if gates > 1:
        return shape[1], shape[0] // gates
    return shape[1] * field, shape[0] // groups * field
