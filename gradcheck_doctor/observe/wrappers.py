"""What distributed training puts around the user's modules, and how to see through it."""
from __future__ import annotations

from types import FrameType

from torch import nn


def wrapped(module: nn.Module) -> nn.Module | None:
    """The model inside a DistributedDataParallel, None for any other module."""
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else None


def user_class(module: nn.Module) -> type:
    """The class as the user wrote it: `fully_shard` turns the class of a Linear into FSDPLinear(FSDPModule, Linear)."""
    kind = type(module)
    if kind.__name__.startswith("FSDP") and any(base.__name__ == "FSDPModule" for base in kind.__bases__):
        return next(base for base in kind.__bases__ if base.__name__ != "FSDPModule")
    return kind


def class_name(module: nn.Module) -> str:
    return user_class(module).__name__


def in_sharding(frame: FrameType | None) -> bool:
    """Whether a call comes from FSDP2's own hooks (gathering parameters), not from a forward."""
    while frame is not None and frame.f_code.co_name not in ("forward", "_call_impl", "<module>"):
        if "_fully_shard" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False
