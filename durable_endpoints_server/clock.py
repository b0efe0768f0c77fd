"""Time, injectable: what the engine calls now, and how it is woken at a later instant."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

_LONGEST_NAP = 30.0
"""Seconds. A wall clock can be stepped, so no timer trusts one reading of it for longer."""


class Alarm(Protocol):
    """A pending call. `cancel` may be called at any time, also after it was made."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """UTC epoch milliseconds, and calls at an instant."""

    def now(self) -> int:
        """The time, rounded up: what is scheduled from it never comes early."""
        ...

    def elapsed(self) -> int:
        """The time, rounded down: an instant up to this one has passed."""
        ...

    def call_at(self, instant: int, callback: Callable[[], None]) -> Alarm:
        """Call `callback` on the running event loop once `instant` has passed."""
        ...


class SystemClock:
    """The machine's clock and the running event loop's timers."""

    def now(self) -> int:
        return -(-time.time_ns() // 1_000_000)

    def elapsed(self) -> int:
        return time.time_ns() // 1_000_000

    def call_at(self, instant: int, callback: Callable[[], None]) -> Alarm:
        return _SystemAlarm(instant, callback)


class _SystemAlarm:
    """Naps until the wall clock says so, however often the clock is stepped meanwhile."""

    __slots__ = ("_callback", "_handle", "_instant", "_loop")

    def __init__(self, instant: int, callback: Callable[[], None]) -> None:
        self._instant = instant
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._nap()

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _nap(self) -> None:
        remaining = self._instant / 1_000 - time.time()
        self._handle = self._loop.call_later(min(max(remaining, 0), _LONGEST_NAP), self._wake)

    def _wake(self) -> None:
        if time.time_ns() // 1_000_000 < self._instant:
            self._nap()
            return
        self._handle = None
        self._callback()
