"""When a failed try of another SDK is repeated: Inngest's own table, which its users know."""

from __future__ import annotations

import random
from typing import Final

_TABLE: Final = (15, 30, 60, 120, 300, 600, 1_200, 2_400, 3_600, 7_200)
"""Seconds after the first failed try, the second … (Inngest, "backoff table")."""
_JITTER: Final = 30_000
_AFTER_REQUEST: Final = 5_000
"""Milliseconds after a failure in the client's own request, where somebody may be waiting."""


class Backoff:
    """Delays in milliseconds; `interval` replaces them all."""

    def __init__(self, interval: int | None) -> None:
        self._interval = interval

    def after_request(self) -> int:
        """After a first try that failed in the sync phase."""
        return _AFTER_REQUEST if self._interval is None else self._interval

    def after(self, attempt: int) -> int:
        """After the `attempt`-th try (from 1) failed."""
        if self._interval is not None:
            return self._interval
        place = min(max(attempt, 1), len(_TABLE)) - 1
        return _TABLE[place] * 1_000 + int(random.random() * _JITTER)
