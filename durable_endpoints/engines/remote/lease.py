"""What a process knows of its lease: until when no other one is given the runs that it executes.

The server counts a lease from when it hears that the process lives. Here it is counted from when
that was said, which is earlier, and ends a little before its time. So what was this process's, and
is covered here without a gap since then, is its own still. After a gap, only the server knows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

_SAFE = 0.9
"""Of a lease: the rest is for two clocks that do not run alike."""
_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""One that goes on while the machine is suspended, where there is one."""


now: Callable[[], float] = partial(time.clock_gettime, _CLOCK)
"""Seconds, by a clock that nobody sets. It begins anywhere."""


class Lease:
    """That of one event loop's name at a server. It is over before the first welcome."""

    __slots__ = ("_ends", "_length", "since")

    def __init__(self) -> None:
        self.since = -math.inf
        """What was this process's at this instant has been covered from then on."""
        self._ends = 0.0
        self._length = 0.0

    def begin(self, said_at: float, length: float) -> None:
        """The server has heard what was said at an instant, and tells how long its leases are: in
        seconds."""
        self._length = length * _SAFE
        self._bridge(said_at)
        self._ends = said_at + self._length

    def renew(self, said_at: float) -> None:
        """The server has heard what was said at an instant."""
        self._bridge(said_at)
        self._ends = max(self._ends, said_at + self._length)

    def _bridge(self, said_at: float) -> None:
        if 0 < self._ends <= said_at:  # before the first welcome there is nothing to lose
            self.since = said_at

    def covers(self, instant: float) -> bool:
        """Whether what was this process's at an instant is so still, for all that can happen."""
        return self.since <= instant and now() < self._ends
