"""Background tasks that are neither lost nor silent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, TypeVar

from durable_endpoints.protocol.errors import EngineError

logger = logging.getLogger("durable_endpoints")

T = TypeVar("T")


class Bell:
    """Wakes the one task that listens, from whichever thread or event loop it is rung."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rung = asyncio.Event()

    def listen(self) -> None:
        """The calling task will `wait` from now on; what was rung before counts."""
        rung = self._rung.is_set()
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()
        if rung:
            self._rung.set()

    def ring(self) -> None:
        """Wake the listener, or the next one if there is none."""
        loop = self._loop
        try:
            if loop is None or loop.is_closed():
                self._rung.set()
            elif is_here(loop):
                # Not at once: a listener that rings for itself must let others have their turn.
                loop.call_soon(self._rung.set)
            else:
                loop.call_soon_threadsafe(self._rung.set)
        except RuntimeError:
            self._rung.set()  # the loop was closed in this very moment

    async def wait(self) -> None:
        """Return once the bell has been rung since the last return."""
        await self._rung.wait()
        self._rung.clear()


def is_here(loop: asyncio.AbstractEventLoop | None) -> bool:
    """Whether the caller is on this event loop."""
    return loop is not None and asyncio._get_running_loop() is loop


async def on_loop(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Await `work` on `loop`, from whichever event loop."""
    if asyncio.get_running_loop() is loop:
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


class TaskSet:
    """Keeps tasks alive until they end, logs what they raise, and cancels them together."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start a task in an empty context: nothing of the caller's request leaks into it."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def cancel(self) -> None:
        """Cancel what is left, and wait for it."""
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, EngineError):  # it says itself what is wrong, and where
            logger.error("%s failed: %s", task.get_name(), error.explanation)
        else:
            logger.error("%s failed", task.get_name(), exc_info=error)
