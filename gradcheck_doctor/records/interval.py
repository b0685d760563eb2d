"""Which steps are observed, as users say it."""
from __future__ import annotations

from gradcheck_doctor.errors import ConfigError


def interval(every: object, where: str = "every") -> int | str:
    """N or "auto"; digits count as a number.

    Raises:
        ConfigError: it is neither; `where` says where it stood.
    """
    if every == "auto":
        return "auto"
    number = int(every) if isinstance(every, str) and every.isdigit() else every
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ConfigError(f"{where} must be a positive number or auto, not {every!r}")
    return number
