"""What all tests share: asyncio under anyio's plugin, and a virtual engine."""

from __future__ import annotations

from typing import Any

import pytest

from durable_endpoints.testing import VirtualEngine
from tests.requirements import missing


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
def engine() -> VirtualEngine:
    return VirtualEngine()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One loud line about what this machine could not test."""
    if missing:
        lacks = ", ".join(sorted(missing))
        terminalreporter.write_line(
            f"NOT EVERYTHING WAS TESTED: this machine has no {lacks}", yellow=True, bold=True
        )
