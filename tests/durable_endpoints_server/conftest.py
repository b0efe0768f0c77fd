"""What the tests of the services share."""

from __future__ import annotations

import pytest

from durable_endpoints.testing import VirtualClock
from tests.durable_endpoints_server.helpers import FlakyStore


@pytest.fixture
def store() -> FlakyStore:
    return FlakyStore()


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()
