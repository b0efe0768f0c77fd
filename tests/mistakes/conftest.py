"""Many of these tests forget something on purpose."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _forgets(forgotten_coroutines_end_here: None) -> None:
    pass
