"""A clock that stands still until it is moved."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

from durable_endpoints_server.clock import Alarm

EPOCH = 1_767_225_600_000
"""2026-01-01T00:00:00Z in epoch milliseconds: where virtual time begins."""


class VirtualClock:
    """Time that passes when it is told to, in UTC epoch milliseconds."""

    def __init__(self, start: int = EPOCH) -> None:
        self._now = start
        self._alarms: list[tuple[int, int, _VirtualAlarm]] = []
        self._numbers = count()

    def now(self) -> int:
        return self._now

    def elapsed(self) -> int:
        return self._now

    def of_machine(self, instant: int) -> int:
        return instant

    def reach(self, instant: int) -> None:
        self._now = max(self._now, instant)

    def call_at(self, instant: int, callback: Callable[[], None]) -> Alarm:
        alarm = _VirtualAlarm(callback, asyncio.get_running_loop())
        heapq.heappush(self._alarms, (instant, next(self._numbers), alarm))
        if instant <= self._now:
            alarm.loop.call_soon(self._ring)
        return alarm

    def next_alarm(self) -> int | None:
        """The next instant at which something is to happen."""
        while self._alarms and self._alarms[0][2].is_void:
            heapq.heappop(self._alarms)
        return self._alarms[0][0] if self._alarms else None

    def move_to(self, instant: int) -> None:
        """Let time pass until `instant`, and ring what was set for it."""
        self._now = max(self._now, instant)
        self._ring()

    def _ring(self) -> None:
        here = asyncio._get_running_loop()
        while (instant := self.next_alarm()) is not None and instant <= self._now:
            alarm = heapq.heappop(self._alarms)[2]
            alarm.is_cancelled = True
            if alarm.loop is here:
                alarm.callback()
            else:
                alarm.loop.call_soon_threadsafe(alarm.callback)


class _VirtualAlarm:
    def __init__(self, callback: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        self.callback = callback
        self.loop = loop
        self.is_cancelled = False

    @property
    def is_void(self) -> bool:
        """Whether nobody is to be called, or could be."""
        return self.is_cancelled or self.loop.is_closed()

    def cancel(self) -> None:
        self.is_cancelled = True
