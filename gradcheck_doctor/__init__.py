"""gradcheck_doctor: finds what keeps a PyTorch model from training, and where in the source.

    import gradcheck_doctor as doctor
    report = doctor.audit(model, batch, loss=loss_fn)
    with doctor.watch(model, optimizer) as monitor:
        train()
    print(monitor.report())

Names are bound on first use: importing the package imports nothing heavy.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
_HOMES = {"audit": "session", "assert_healthy": "session", "watch": "integrations.loop", "Report": "report.report",
          "DoctorError": "errors", "treat": "live"}
__all__ = ["DoctorError", "Report", "__version__", "assert_healthy", "audit", "treat", "watch"]

if TYPE_CHECKING:
    from gradcheck_doctor.errors import DoctorError
    from gradcheck_doctor.integrations.loop import watch
    from gradcheck_doctor.live import treat
    from gradcheck_doctor.report.report import Report
    from gradcheck_doctor.session import assert_healthy, audit


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
