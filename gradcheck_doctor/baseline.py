"""Known findings that are not to be reported again, by fingerprint (rule, file, module, op; no line numbers)."""
from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from gradcheck_doctor.errors import ConfigError
from gradcheck_doctor.records.findings import Finding
from gradcheck_doctor.records.sources import home_path

VERSION = 1


def write(path: str, findings: Iterable[Finding]) -> None:
    """Store the fingerprints of `findings`, with what a person needs to recognise them."""
    rows = {f.fingerprint: {"code": f.code, "rule": f.rule, "module": f.module, "file": home_path(f.location.file) if f.location else ""} for f in findings}
    Path(path).write_text(json.dumps({"version": VERSION, "findings": rows}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read(path: str) -> frozenset[str]:
    """Fingerprints in a baseline file.

    Raises:
        ConfigError: it is missing or no baseline.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"baseline {path} does not exist; create it with --write-baseline {path}") from error
    except OSError as error:
        raise ConfigError(f"baseline {path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no baseline of this tool: {error}") from error
    findings = content.get("findings") if isinstance(content, dict) else None
    if not isinstance(findings, dict) or content.get("version") != VERSION:
        raise ConfigError(f"{path} is no baseline of this tool; write one with --write-baseline {path}")
    return frozenset(findings)
