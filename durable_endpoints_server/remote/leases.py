"""Leases: for how long a process may be silent until its runs are given to others.

A process proves that it lives by anything that it says. Its lease is in memory alone: a server that
was just started gives every process that it finds in the store one whole lease to come back.
"""

from __future__ import annotations

from collections.abc import Callable

from durable_endpoints_server.clock import Alarm, Clock

_LATE = 1_000
"""Milliseconds. An alarm that rings so much later than it was set for says that it was this server
that did nothing for a while, or that its clock was set forward. What others have said meanwhile is
still to be read, and they count on a whole lease."""


class Leases:
    """The leases of processes, by their names."""

    def __init__(self, clock: Clock, lease: int, on_silence: Callable[[str], None]) -> None:
        """`lease` is in milliseconds. `on_silence` is told which process was silent for too
        long."""
        self._clock = clock
        self._lease = lease
        self._on_silence = on_silence
        self._ends: dict[str, int] = {}
        self._alarm: Alarm | None = None
        self._is_closed = False

    def hear(self, process: str) -> None:
        """The process lives."""
        if self._is_closed:
            return
        self._ends[process] = self._clock.now() + self._lease
        if self._alarm is None:
            self._set_alarm()

    def forget(self, process: str) -> None:
        """The process has nothing that could be lost."""
        self._ends.pop(process, None)
        if not self._ends:
            self._cancel_alarm()

    def close(self) -> None:
        """No process is watched any more: this server is about to end, and no process can come back
        to it. The next one gives each a whole lease."""
        self._is_closed = True
        self._ends.clear()
        self._cancel_alarm()

    def _cancel_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _set_alarm(self) -> None:
        instant = min(self._ends.values())
        self._alarm = self._clock.call_at(instant, lambda: self._look(instant))

    def _look(self, instant: int) -> None:
        now = self._clock.now()
        self._alarm = None
        if now > instant + _LATE:
            self._ends = dict.fromkeys(self._ends, now + self._lease)
        silent = [process for process, end in self._ends.items() if end <= now]
        for process in silent:
            del self._ends[process]
        if self._ends:
            self._set_alarm()
        for process in silent:
            self._on_silence(process)
