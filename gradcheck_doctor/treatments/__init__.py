"""Cures: source edits of exact spans (planners), and changes of a live model (`live*`), each made whole or refused with its reason.

    from gradcheck_doctor.treatments import fold_norm
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradcheck_doctor.treatments.live_fold import fold_norm
    from gradcheck_doctor.treatments.live_input import Standardise

__all__ = ["Standardise", "fold_norm"]
_HOMES = {"fold_norm": "live_fold", "Standardise": "live_input"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
