"""An asyncio event loop without a clock, a selector or threads: time is a number that jumps.

All simulated processes share one loop. What a callback schedules belongs to the process of that
callback, so a process can be killed (nothing of it runs ever again: it is not unwound), or held
back for a while and let go on. Only the simulated network and disk cross from one process to
another, by `Process.call_later`.
"""

from __future__ import annotations

import asyncio
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from itertools import count
from typing import Any, TypeVar

T = TypeVar("T")

_TICK = 1e-6
"""Seconds that a callback takes: so whoever polls sees time pass."""
_PRUNE = 200


class StuckError(Exception):
    """What was awaited does not come, though nothing else is to be done or time is over."""


class Machine:
    """What all processes of one machine have in common."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.boots = 0
        """How often it was started anew."""
        self.offset = 0.0
        """Seconds that its clock is ahead of the loop's."""


class Process:
    """Something that can die: its callbacks, and all tasks that it ever made."""

    def __init__(self, loop: SimulatedLoop, name: str, machine: Machine) -> None:
        self.name = name
        self.machine = machine
        self.on_sigterm: list[Callable[[], None]] = []
        """What the process has asked to be called at SIGTERM."""
        self.is_alive = True
        self.loop = loop
        self._held: deque[asyncio.Handle] | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._prune_at = _PRUNE
        loop.processes.append(self)

    def __repr__(self) -> str:
        return self.name

    @property
    def tasks(self) -> list[asyncio.Task[Any]]:
        """Those that have not ended."""
        return [task for task in self._tasks if not task.done()]

    def add(self, task: asyncio.Task[Any]) -> None:
        self._tasks.append(task)
        if len(self._tasks) > self._prune_at:
            self._tasks = self.tasks
            self._prune_at = 2 * len(self._tasks) + _PRUNE

    def forget(self) -> None:
        """Let go of its tasks, without a warning that some are pending."""
        for task in self.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._tasks.clear()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """What is scheduled within this belongs to the process."""
        loop = self.loop
        before, loop.process = loop.process, self
        try:
            yield
        finally:
            loop.process = before

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin a task of this process."""
        with self.entered():
            return self.loop.create_task(work, context=Context())

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> None:
        """Let something arrive at this process, from outside."""
        with self.entered():
            self.loop.call_later(delay, callback, *args, context=Context())

    def kill(self) -> None:
        """Nothing of it runs any more. Its tasks are kept, or their `finally` blocks would run."""
        self.is_alive = False
        self._held = None

    def hold(self) -> None:
        """As SIGSTOP."""
        if self._held is None:
            self._held = deque()

    def go_on(self) -> None:
        """As SIGCONT."""
        held, self._held = self._held, None
        self.loop.put_back(self, held or deque())

    @property
    def is_held(self) -> bool:
        return self._held is not None

    def takes(self, handle: asyncio.Handle) -> bool:
        """Whether `handle` runs now; if not, it is dropped, or kept for later."""
        if self._held is not None:
            self._held.append(handle)
            return False
        return self.is_alive


_Abstract: Any = asyncio.AbstractEventLoop
"""Most of whose methods, those for sockets and signals, nobody calls here."""


class SimulatedLoop(_Abstract):  # type: ignore[misc]
    """Runs callbacks one by one, in the order of asyncio, and jumps to the next timer."""

    def __init__(self) -> None:
        self.processes: list[Process] = []
        """All that there ever were."""
        self.process = self.outside = Process(self, "outside", Machine("outside"))
        """Whose callback runs."""
        self.count = 0
        """Callbacks so far: the moments at which something may happen to a process."""
        self.on_step: Callable[[], None] = lambda: None
        """Called before each callback."""
        self.on_error: Callable[[str], None] = lambda what: None
        """Told what nobody has caught."""
        self._now = 0.0
        self._ready: deque[tuple[Process, asyncio.Handle]] = deque()
        self._timers: list[tuple[float, int, Process, asyncio.TimerHandle]] = []
        self._numbers = count()
        self._hashes = count()
        self._is_closed = False

    # Running

    def run(self, work: Coroutine[Any, Any, T], within: float) -> T:
        """Run until `work`, which belongs to no process, is done.

        Raises `StuckError` if that takes longer than `within` seconds, or for ever.
        """
        events._set_running_loop(self)
        try:
            task = self.outside.spawn(work)
            deadline = self._now + within
            while not task.done():
                if not self._step():
                    raise StuckError("nothing is left to be done")
                if self._now > deadline:
                    raise StuckError(f"it takes longer than {within:g} s")
            return task.result()
        finally:
            events._set_running_loop(None)

    def _step(self) -> bool:
        self._look_at_timers()
        if not self._ready:
            return False
        self.count += 1
        self.on_step()
        process, handle = self._ready.popleft()
        if not handle.cancelled() and process.takes(handle):
            self.process = process
            handle._run()
            self.process = self.outside
        self._now += _TICK
        return True

    def _look_at_timers(self) -> None:
        timers = self._timers
        while timers and (timers[0][3].cancelled() or not timers[0][2].is_alive):
            heapq.heappop(timers)
        if not self._ready and timers:
            self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            _, _, process, handle = heapq.heappop(timers)
            self._ready.append((process, handle))

    def put_back(self, process: Process, handles: deque[asyncio.Handle]) -> None:
        """Run `handles` next, before whatever else the process has to do."""
        self._ready.extendleft((process, handle) for handle in reversed(handles))

    # As asyncio's own

    def time(self) -> float:
        return self._now

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        self._check_open()
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append((self.process, handle))
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self._check_open()
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), self.process, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(loop=self)

    def create_task(
        self,
        coro: Any,
        *,
        name: object = None,
        context: Context | None = None,
        **kwargs: Any,
    ) -> asyncio.Task[Any]:
        self._check_open()
        task: asyncio.Task[Any] = _Task(coro, loop=self, name=name, context=context)
        self.process.add(task)
        return task

    def run_in_executor(
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Without a thread: soon, on the loop."""
        future = self.create_future()

        def work() -> None:
            if not future.done():
                try:
                    future.set_result(func(*args))
                except Exception as error:
                    future.set_exception(error)

        self.call_later(0.0001, work)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.on_error(f"{context['message']}: {context.get('exception')!r}")

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self._is_closed

    def is_closed(self) -> bool:
        return self._is_closed

    def close(self) -> None:
        """Nothing runs any more. Coroutines that are thrown away later do so in silence."""
        self._is_closed = True
        self._ready.clear()
        self._timers.clear()
        for process in self.processes:
            process.forget()
        self.on_error = lambda what: None

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("Event loop is closed")

    def next_hash(self) -> int:
        return next(self._hashes)


class _Future(asyncio.Future[Any]):
    def __init__(self, *, loop: SimulatedLoop) -> None:
        self._number = loop.next_hash()
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class _Task(asyncio.Task[Any]):
    def __init__(self, coro: Any, *, loop: SimulatedLoop, **options: Any) -> None:
        self._number = loop.next_hash()
        super().__init__(coro, loop=loop, **options)

    def __hash__(self) -> int:
        return self._number
