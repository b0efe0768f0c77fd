"""Time, processes and tasks of a simulated world: one heap, one seed, no threads.

A task is a generator. It yields what it waits for: a `Future`, or a number of microseconds. Tasks
belong to a process, and end with it in the middle of whatever they do; those of one that is stopped
go on when it goes on. Between tasks of one process that are ready at once the order is first come,
first served, as on an event loop; all else is settled by random delays.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Generator
from random import Random
from typing import Any, Final

Task = Generator[Any, Any, Any]

MS: Final = 1_000
"""Microseconds in a millisecond: the world's time is in microseconds, engines' in milliseconds."""
_LONGEST_NAP = 30_000 * MS
"""What is shipped naps no longer than this, because a wall clock can be stepped."""
_SLOWER = 20
"""By one part in so many is engine time slower while it is ahead of the wall clock."""


class Future:
    """Something that will be there later: a value, or an error."""

    __slots__ = ("_waiting", "error", "is_done", "value")

    def __init__(self) -> None:
        self.is_done = False
        self.value: Any = None
        self.error: Exception | None = None
        self._waiting: list[Callable[[Future], None]] = []

    def set(self, value: Any = None, error: Exception | None = None) -> None:
        if self.is_done:
            return
        self.is_done, self.value, self.error = True, value, error
        for callback in self._waiting:
            callback(self)
        self._waiting = []

    def then(self, callback: Callable[[Future], None]) -> None:
        if self.is_done:
            callback(self)
        else:
            self._waiting.append(callback)


class Process:
    """One incarnation of a process. What is due while it is stopped happens when it goes on."""

    __slots__ = ("held", "is_alive", "is_stopped", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_alive = True
        self.is_stopped = False
        self.held: list[tuple[Callable[..., None], tuple[Any, ...]]] = []


class Loop:
    """The world's heap of things to come."""

    def __init__(self, random: Random, limit: int) -> None:
        """`limit` is how many things may happen until the world is said to go round in circles."""
        self.now = 0
        self.actions = 0
        self.random = random
        self.trace: list[str] | None = None
        self.limit = limit
        self._heap: list[tuple[int, float, int, Process, Callable[..., None], tuple[Any, ...]]] = []
        self._ready: deque[tuple[Process, Callable[..., None], tuple[Any, ...]]] = deque()
        self._count = 0

    def say(self, text: str) -> None:
        """Note what happens, if somebody wants to read it."""
        if self.trace is not None:
            self.trace.append(f"{self.now / MS:>14,.3f}  {text}")

    def later(self, process: Process, delay: int, call: Callable[..., None], *args: Any) -> None:
        """Call after `delay` microseconds, if the process lives then."""
        self._count += 1
        order = self.random.random()
        heapq.heappush(self._heap, (self.now + delay, order, self._count, process, call, args))

    def soon(self, process: Process, call: Callable[..., None], *args: Any) -> None:
        """Call before time goes on, after what was to be called soon already."""
        self._ready.append((process, call, args))

    def spawn(self, process: Process, task: Task) -> None:
        self._ready.append((process, self._step, (process, task, None, None)))

    def latency(self, most: int) -> int:
        """A random delay: mostly much less than `most` microseconds."""
        chance = self.random.random()
        return int(most * chance * chance * chance)

    def kill(self, process: Process) -> None:
        """End a process where it is."""
        process.is_alive = False
        process.held.clear()

    def resume(self, process: Process) -> None:
        """Let a stopped process go on."""
        process.is_stopped = False
        for call, args in process.held:
            self._ready.append((process, call, args))
        process.held = []

    def run(self, on_action: Callable[[], None]) -> None:
        """Go on until nothing is left to happen. Raises `RestlessError`."""
        heap, ready = self._heap, self._ready
        while True:
            while ready:
                process, call, args = ready.popleft()
                self._call(process, call, args)
            if not heap:
                return
            at, _, _, process, call, args = heapq.heappop(heap)
            if not process.is_alive:
                continue
            self.now = max(at, self.now)
            self.actions += 1
            if self.actions > self.limit:
                raise RestlessError(f"the world is not at rest after {self.limit} actions")
            on_action()
            self._call(process, call, args)

    def _call(self, process: Process, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        if not process.is_alive:
            return
        if process.is_stopped:
            process.held.append((call, args))
        else:
            call(*args)

    def _step(self, process: Process, task: Task, value: Any, error: Exception | None) -> None:
        try:
            wanted = task.throw(error) if error is not None else task.send(value)
        except StopIteration:
            return
        if isinstance(wanted, int):
            self.later(process, wanted, self._step, process, task, None, None)
        else:
            wanted.then(
                lambda done: self.soon(process, self._step, process, task, done.value, done.error)
            )


class RestlessError(AssertionError):
    """The world does not come to rest: something is tried over and over."""


class Clock:
    """`clock.py`: engine time on a wall clock that can be set, and alarms that nap until it says
    so. Where the wall clock is set back, engine time goes on, and a little slower until the two
    agree."""

    def __init__(self, loop: Loop, offset: int) -> None:
        """`offset` is in milliseconds."""
        self._loop = loop
        self._offset = offset
        self._ahead = self._since = 0
        """How far engine time was ahead of the wall clock, and when that was, in microseconds."""
        self._pending: dict[int, tuple[Process, int, Callable[..., None], tuple[Any, ...]]] = {}
        self._count = 0

    def now(self) -> int:
        """Epoch milliseconds, rounded up."""
        return -(-(self._loop.now + self._still_ahead()) // MS) + self._offset

    def elapsed(self) -> int:
        """The same, rounded down."""
        return (self._loop.now + self._still_ahead()) // MS + self._offset

    def _still_ahead(self) -> int:
        return self._ahead and max(0, self._ahead - (self._loop.now - self._since) // _SLOWER)

    def begin(self, newest: int) -> bool:
        """A process starts: it knows the wall clock, and the newest instant on the disk. Returns
        whether engine time has gone back thereby."""
        wall, before = self._loop.now + self._offset * MS, self._still_ahead()
        self._ahead, self._since = max(0, newest * MS - wall), self._loop.now
        return self._ahead < before

    def step(self, milliseconds: int) -> None:
        """Somebody sets the clock. Alarms notice when they wake from their nap."""
        loop = self._loop
        self._ahead = max(0, self._still_ahead() - milliseconds * MS)
        self._since = loop.now
        self._offset += milliseconds
        for number, (process, *_) in list(self._pending.items()):
            nap = loop.random.randrange(_LONGEST_NAP)
            loop.later(process, nap, self._wake, number)

    def call_at(self, process: Process, instant: int, call: Callable[..., None], *args: Any) -> int:
        """Call once `instant` has passed. Returns what `cancel` wants."""
        self._count += 1
        self._pending[self._count] = (process, instant, call, args)
        self._nap(self._count, process, instant)
        return self._count

    def cancel(self, number: int) -> None:
        self._pending.pop(number, None)

    def _nap(self, number: int, process: Process, instant: int) -> None:
        remaining = (instant - self._offset) * MS - self._loop.now - self._still_ahead()
        self._loop.later(process, max(0, remaining), self._wake, number)

    def _wake(self, number: int) -> None:
        pending = self._pending.get(number)
        if pending is None:
            return
        process, instant, call, args = pending
        if self.elapsed() < instant:
            self._nap(number, process, instant)
            return
        del self._pending[number]
        call(*args)
