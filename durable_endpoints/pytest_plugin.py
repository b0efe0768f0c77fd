"""The pytest plugin: the fixture `durable_engine`.

pytest imports it in every session of an environment that has the package, so it imports the testing
kit, and with it the engine, only when the fixture is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from durable_endpoints.testing import VirtualEngine


@pytest.fixture
def durable_engine() -> Iterator[VirtualEngine]:
    """An engine in memory with a clock that stands still, in use during the test: see
    `durable_endpoints.testing`."""
    from durable_endpoints.testing import VirtualEngine

    with VirtualEngine() as engine:
        yield engine
