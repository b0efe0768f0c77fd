"""Time, injectable: what the engine calls now, and how it is woken at a later instant.

Engine time is UTC as far as the machine knows it, but it never goes back. What is due, and which of
two things came first, is decided by comparing instants: a clock that goes back would keep sleepers
for as much longer, and lose events, because they seem to be older than the runs that wait for them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

logger = logging.getLogger("durable_endpoints")

_LONGEST_NAP = 30.0
"""Seconds. A wall clock can be set forward, so no timer trusts one reading of it for longer."""
_SLOWER = 20
"""By one part in so many is engine time slower than real time, while it is ahead of the machine's
clock: that is how the two come together again."""
_NOTHING = 1_000_000
"""Nanoseconds that may lie between the readings of two clocks."""
_NOTABLE = 1_000_000_000
"""Nanoseconds by which the machine's clock is set back, from which on the log says so."""


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

    def of_machine(self, instant: int) -> int:
        """The time at which the machine's clock shows `instant`, if nobody sets it again."""
        ...

    def reach(self, instant: int) -> None:
        """Let it be `instant` or later: so late it was already, in an earlier process."""
        ...

    def call_at(self, instant: int, callback: Callable[[], None]) -> Alarm:
        """Call `callback` on the running event loop once `instant` has passed."""
        ...


class _Reading(NamedTuple):
    """In nanoseconds."""

    difference: int
    """How far the machine's clock is ahead of a steady one, which nobody sets."""
    steady: int
    ahead: int
    """How far engine time is ahead of the machine's clock."""


class SystemClock:
    """The machine's clock and the running event loop's timers.

    Where the machine's clock is set back, this one goes on as if nothing had happened, and from
    then on a little slower than time itself, until the two agree. Where it is set forward, this one
    follows at once: that cannot be told from a machine that has slept.
    """

    def __init__(self) -> None:
        steady = _steady()
        self._last = _Reading(time.time_ns() - steady, steady, 0)

    def now(self) -> int:
        # `_nanoseconds`, in one go where no clock was set: every step asks for it.
        machine = time.time_ns()
        difference, _, ahead = self._last
        step = machine - int(time.monotonic() * 1e9) - difference
        if ahead or not -_NOTHING < step < _NOTHING:
            machine = self._nanoseconds()
        return -(-machine // 1_000_000)

    def elapsed(self) -> int:
        return self._nanoseconds() // 1_000_000

    def of_machine(self, instant: int) -> int:
        self._nanoseconds()
        return instant + -(-self._last.ahead // 1_000_000)

    def reach(self, instant: int) -> None:
        if (missing := instant * 1_000_000 - self._nanoseconds()) > 0:
            self._last = self._last._replace(ahead=self._last.ahead + missing)
            if missing >= _NOTABLE:
                logger.warning(_SET_BACK, missing / 1e9)

    def call_at(self, instant: int, callback: Callable[[], None]) -> Alarm:
        return _SystemAlarm(self, instant, callback)

    def _nanoseconds(self) -> int:
        # The machine's clock is read first: a pause between the two makes it look late, which is
        # made up for by the next reading, and never early, which would be kept.
        machine, steady = time.time_ns(), _steady()
        difference, then, ahead = self._last
        step = machine - steady - difference
        if not ahead and -_NOTHING < step < _NOTHING:
            return machine
        ahead = max(0, ahead - (steady - then) // _SLOWER)
        ahead = max(0, ahead - step)
        self._last = _Reading(machine - steady, steady, ahead)
        if step <= -_NOTABLE:
            logger.warning(_SET_BACK, -step / 1e9)
        return machine + ahead


def _steady() -> int:
    return int(time.monotonic() * 1e9)


_SET_BACK = (
    "the machine's clock was set back by %.0f s: engine time goes on from where it was, and a "
    "little slower until the two agree"
)


class _SystemAlarm:
    """Naps until the clock says so, however often the machine's is set meanwhile."""

    __slots__ = ("_callback", "_clock", "_handle", "_instant", "_loop")

    def __init__(self, clock: SystemClock, instant: int, callback: Callable[[], None]) -> None:
        self._clock = clock
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
        remaining = self._instant / 1_000 - self._clock._nanoseconds() / 1e9
        self._handle = self._loop.call_later(min(max(remaining, 0), _LONGEST_NAP), self._wake)

    def _wake(self) -> None:
        if self._clock.elapsed() < self._instant:
            self._nap()
            return
        self._handle = None
        self._callback()
