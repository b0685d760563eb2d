"""--input SPEC: float32[32,3,224,224], int64[8,128]<50257, name=SPEC."""
from __future__ import annotations

import re
from typing import Any

import torch

from gradcheck_doctor.errors import BatchError

_SPEC = re.compile(r"^(?:(?P<name>[A-Za-z_]\w*)=)?(?P<dtype>[a-z]+\d*)\[(?P<shape>[\d,\s]*)\](?:<(?P<limit>[1-9]\d*))?$")


def parse(spec: str, seed: int = 0) -> tuple[str | None, torch.Tensor]:
    """(keyword or None, tensor): standard normal values, or integers in [0, limit).

    Raises:
        BatchError: the text is no SPEC.
    """
    found = _SPEC.match(spec.strip())
    dtype = getattr(torch, found["dtype"], None) if found else None
    if found is None or not isinstance(dtype, torch.dtype):
        raise BatchError(f"--input {spec!r} is not understood; write dtype[shape], such as float32[32,3,224,224], int64[8,128]<50257 or mask=bool[8,128]")
    shape = tuple(int(n) for n in found["shape"].split(",") if n.strip())
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point or dtype.is_complex:
        tensor = torch.randn(shape, generator=generator).to(dtype)
    elif dtype is torch.bool:
        tensor = torch.ones(shape, dtype=torch.bool)
    else:
        tensor = torch.randint(0, int(found["limit"] or 2), shape, generator=generator).to(dtype)
    return found["name"], tensor


def batch_of(specs: tuple[str, ...], seed: int) -> Any:
    """One tensor, a tuple, or a dict when the specs are named."""
    parsed = [parse(spec, seed + i) for i, spec in enumerate(specs)]
    if all(name is None for name, _ in parsed):
        tensors = tuple(t for _, t in parsed)
        return tensors[0] if len(tensors) == 1 else tensors
    if any(name is None for name, _ in parsed):
        raise BatchError("--input: name all inputs or none of them")
    return {str(name): tensor for name, tensor in parsed}
