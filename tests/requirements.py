"""What a machine may lack: then tests skip, loudly, or fail where everything must be there."""

from __future__ import annotations

import os

import pytest

REQUIRE_ALL = os.environ.get("DURABLE_TESTS_REQUIRE_ALL") == "1"

missing: set[str] = set()
"""What was missed, for the summary line."""


def need(condition: bool, what: str) -> None:
    """Skip the test unless `condition`; fail it under DURABLE_TESTS_REQUIRE_ALL=1."""
    if condition:
        return
    missing.add(what)
    if REQUIRE_ALL:
        pytest.fail(f"this machine has no {what}, and DURABLE_TESTS_REQUIRE_ALL=1 wants it")
    pytest.skip(f"this machine has no {what}")
