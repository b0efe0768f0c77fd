"""What time brings to a run while it is executed: steps that are due, waits that time out, and the
end of the time that the run may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from durable_endpoints.protocol.errors import EngineError, LostRunError, StorageError
from durable_endpoints.protocol.ops import FROM_OUTSIDE, StepState
from durable_endpoints_server.clock import Alarm
from durable_endpoints_server.engine.transitions import Expire

if TYPE_CHECKING:
    from durable_endpoints_server.host import Host
    from durable_endpoints_server.live import LiveRun

_AFTER_FAILURE = 1_000
"""Milliseconds until a wait whose time is over is looked at again, if the store failed."""
_DEADLINE = ""
"""The key of the run's own alarm, among those of its steps."""


class Alarms:
    """The alarms of one execution, to be cancelled when it leaves its run.

    The execution is handed in with each call: what keeps the two alive together is an alarm alone.
    """

    __slots__ = ("_host", "_set")

    def __init__(self, host: Host) -> None:
        self._host = host
        self._set: dict[str, Alarm] = {}

    def set_deadline(self, live: LiveRun, instant: int) -> None:
        """End the run at `instant`, if it has not ended by then."""

        def ring() -> None:
            live.spawn(_expire(live), f"time out {live.id}")

        self._at(_DEADLINE, instant, ring)

    def set_due(self, live: LiveRun, key: str, instant: int) -> None:
        """Resolve the open step `key` when it is due."""
        if key not in self._set:
            self._at(key, instant, lambda: self._due(live, key))

    def cancel(self) -> None:
        for alarm in self._set.values():
            alarm.cancel()
        self._set.clear()

    def _at(self, key: str, instant: int, ring: Callable[[], None]) -> None:
        self._set[key] = self._host.clock.call_at(instant, ring)

    def _due(self, live: LiveRun, key: str) -> None:
        self._set.pop(key, None)
        step = live.awaited(key)
        if step is None:
            return
        if step.kind in FROM_OUTSIDE:
            live.spawn(self._time_out(live, key), f"time out a wait of {live.id}")
        elif step.state is StepState.PENDING or step.due is not None:
            live.resolve(step)

    async def _time_out(self, live: LiveRun, key: str) -> None:
        """What was received before the deadline goes first, however late it is looked at: what is
        being matched just now, and what came before the wait was on disk."""
        try:
            await self._host.catch_up()
            await live.look_back(key)
        except LostRunError:
            return
        except StorageError:
            again = self._host.clock.now() + _AFTER_FAILURE
            self._at(key, again, lambda: self._due(live, key))
            return
        if (step := live.awaited(key)) is not None:
            live.resolve(step)


async def _expire(live: LiveRun) -> None:
    try:
        await live.stop(Expire())
    except EngineError:
        pass  # it has ended otherwise, or will be looked at again once the store works
