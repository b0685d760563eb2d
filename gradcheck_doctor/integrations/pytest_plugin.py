"""pytest plugin: the fixture `assert_healthy`. Nothing heavy is imported until a test uses it."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def assert_healthy() -> Callable[..., Any]:
    """`assert_healthy(model, batch, loss=None, fail_on="warning")`: audits and fails the test with the findings."""
    from gradcheck_doctor.session import assert_healthy as check

    return check
