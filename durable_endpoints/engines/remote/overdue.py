"""Who waits for a server, and for how long: one timer for all of them.

Whoever waits may do so for the same time, or if the link is down until the same instant: so those
who began first are the first ones whose time is over.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from durable_endpoints.engines.remote.link import Link
from durable_endpoints.errors import EngineError

_TICK = 0.001
"""Seconds: what the clocks of event loops count in."""


class Overdue:
    """Futures that fail if the server does not answer in time. For one event loop."""

    def __init__(self, link: Link, timeout: float, error: Callable[[], EngineError]) -> None:
        """`timeout` is in seconds, of which those count in which the link is down already; `error`
        makes what a future fails with."""
        self._link = link
        self._timeout = timeout
        self._error = error
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def patience(self) -> float:
        """Seconds for which somebody may wait now: none, if the server was away for long."""
        return max(0.0, self._timeout - self._link.down_for)

    def watch(self, future: asyncio.Future[Any]) -> None:
        """Let `future` fail when its time is over, unless it is done by then."""
        waiting = self._waiting
        while waiting and waiting[0][1].done():
            waiting.popleft()
        patience = self._timeout if self._link.is_open else self.patience
        waiting.append((self._loop.time() + patience, future))
        if self._timer is None:
            self._timer = self._loop.call_later(patience, self._look)

    def _look(self) -> None:
        self._timer = None
        while self._waiting:
            until, future = self._waiting[0]
            left = until - self._loop.time()
            if not future.done():
                if left >= _TICK:
                    self._timer = self._loop.call_later(left, self._look)
                    return
                future.set_exception(self._error())
            self._waiting.popleft()
