"""The exceptions of this package; every message says what to do next.

    DoctorError                 base: one clear message, exit status 2
     ├─ TargetError             the target cannot be found, imported or built
     │   └─ NotForAudit         it could, but not as it was named: it trains, or asks for arguments
     ├─ BatchError              no batch could be found, or the forward refuses it
     ├─ ProbeError              the probe ran into something it cannot measure (no gradient, meta device, ...)
     ├─ ConfigError             a broken pyproject table or an unknown option value
     ├─ UnknownRule             a code or name that no rule has
     └─ TreatmentRefused        a change that may not or cannot be made, with the reason
"""
from __future__ import annotations


class DoctorError(Exception):
    """Base of all errors that this package raises on purpose."""


class TargetError(DoctorError):
    """The target cannot be found, imported or built."""


class NotForAudit(TargetError):
    """Nothing is wrong with the target, but it can't be audited as it was named: it trains, or asks for arguments."""


class BatchError(DoctorError):
    """No batch could be found, or the forward refuses it."""


class ProbeError(DoctorError):
    """The probe ran into something it cannot measure."""


class ConfigError(DoctorError):
    """A broken configuration or an unknown option value."""


class UnknownRule(ConfigError):
    """A code or name that no rule has."""


class TreatmentRefused(DoctorError):
    """A change that may not or cannot be made; the message is the reason."""
