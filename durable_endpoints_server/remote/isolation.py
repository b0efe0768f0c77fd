"""Runs that may take their process down: each has a process for itself while it is executed.

Only what happens to a run that was alone is held against it. So a process is chosen, given nothing
more, and asked to begin no new runs for a while; when what it has is done, it gets the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from durable_endpoints_server.clock import Alarm, Clock
from durable_endpoints_server.remote.process import RemoteProcess

_PATIENCE = 60_000
"""Milliseconds that such a run waits for a quiet moment before it goes on without one."""


class _Chosen(NamedTuple):
    process: RemoteProcess
    alarm: Alarm


class Isolation:
    """Finds processes for runs in quarantine."""

    def __init__(self, clock: Clock, look_again: Callable[[], None]) -> None:
        """`look_again` is told when a run may have a place that had none."""
        self._clock = clock
        self._look_again = look_again
        self._chosen: dict[str, _Chosen] = {}
        self._impatient: set[str] = set()
        """Runs that have waited long enough."""

    def place(self, run_id: str, serving: Sequence[RemoteProcess]) -> RemoteProcess | None:
        """The process that may execute the run now, among those that serve its application. None
        while there is none."""
        if run_id in self._impatient:
            self._impatient.discard(run_id)
            return least_busy(serving)
        chosen = self._chosen.get(run_id)
        if chosen is not None and chosen.process not in serving:
            self.end(run_id)
            chosen = None
        process = chosen.process if chosen is not None else self._choose(run_id, serving)
        return None if process is None or process.sessions else process

    def end(self, run_id: str) -> None:
        """The run needs no process for itself any more."""
        chosen = self._chosen.pop(run_id, None)
        if chosen is not None:
            chosen.alarm.cancel()
            chosen.process.isolate(False)
            self._look_again()

    def _choose(self, run_id: str, serving: Sequence[RemoteProcess]) -> RemoteProcess | None:
        process = least_busy([process for process in serving if not process.is_isolated])
        if process is not None:
            process.isolate(True)
            until = self._clock.now() + _PATIENCE
            alarm = self._clock.call_at(until, lambda: self._lose_patience(run_id))
            self._chosen[run_id] = _Chosen(process, alarm)
        return process

    def _lose_patience(self, run_id: str) -> None:
        if run_id not in self._chosen[run_id].process.executing:
            self._impatient.add(run_id)
            self.end(run_id)


def least_busy(processes: Sequence[RemoteProcess]) -> RemoteProcess | None:
    """The process with the fewest executions."""
    return min(processes, key=lambda process: len(process.sessions), default=None)
