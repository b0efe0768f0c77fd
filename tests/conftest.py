"""What all tests share: asyncio under anyio's plugin, and a virtual engine."""

from __future__ import annotations

from typing import Any

import pytest

from durable_endpoints.testing import VirtualEngine


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
def engine() -> VirtualEngine:
    return VirtualEngine()
