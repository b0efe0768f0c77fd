"""What `stream.pipe` takes, as pieces of text: iterators, HTTP responses, streams of LLM providers.

A provider's stream says itself when it is complete. One that ends without having said so was cut
off, and its text is not taken for the whole answer (`deltas.py`).
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from inspect import isawaitable
from typing import Any, Protocol

from durable_endpoints.calls import call_in_thread, read_in_thread, unwrap
from durable_endpoints.deltas import Text
from durable_endpoints.errors import UsageError


class Readable(Protocol):
    """An HTTP response that was not read yet: what is used of httpx's and httpx2's."""

    def iter_bytes(self) -> Iterator[bytes]: ...
    def raise_for_status(self) -> Any: ...


Source = (
    str | bytes | Iterable[Any] | AsyncIterable[Any] | Readable | Awaitable[Any] | Callable[[], Any]
)
"""An (async) iterator of text, of bytes, or of what an LLM provider streams; an httpx response that
was not read yet; or an awaitable or a callable, which may be async, that gives one of these."""

_AHEAD = 1_000
"""Items that the thread of a blocking source may be ahead."""


async def texts(source: Source) -> AsyncIterator[str]:
    """The source's text, piece by piece, on the event loop. Blocking sources are read in a worker
    thread."""
    opened: Any = await _opened(source)
    text = Text(opened)
    if isinstance(opened, str | bytes | list | tuple):
        for item in [opened] if isinstance(opened, str | bytes) else opened:
            yield text.of(item)
    elif hasattr(opened, "__aiter__"):
        try:
            async for item in opened:
                yield text.of(item)
        finally:
            await _close(opened)
    else:
        pump = _Pump(opened, _iterator(opened))
        reading = asyncio.ensure_future(read_in_thread(pump.run))
        reading.add_done_callback(lambda _: pump.wake())
        try:
            while items := await pump.take(reading):
                for item in items:
                    yield text.of(item)
            await reading  # raises what the source raised
        finally:
            pump.stop()
            reading.cancel()
    yield text.end()


def blocking_texts(source: Source) -> Iterator[str]:
    """The same in the calling thread. Raises `UsageError` for a source that has to be awaited."""
    if callable(source) and not _is_iterable(source):
        source = source()
    if isawaitable(source) or (hasattr(source, "__aiter__") and not hasattr(source, "__iter__")):
        raise UsageError(
            f"stream.sync.pipe cannot await {type(source).__name__}: write `await stream.pipe(…)` "
            "in an `async def`"
        )
    text = Text(source)
    if isinstance(source, str | bytes):
        yield text.of(source)
    else:
        source = _response_text(source, is_async=False)
        try:
            for item in _iterator(source):
                yield text.of(item)
        finally:
            _close_here(source)
    yield text.end()


async def _opened(source: Source) -> Any:
    if callable(source) and not _is_iterable(source):
        function = unwrap(source)
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            source = source()
        else:  # it may ask a provider, and block until that answers
            source = await call_in_thread(source)
    if isawaitable(source) and not _is_iterable(source):
        source = await source
    return _response_text(source, is_async=True)


def _response_text(source: Any, is_async: bool) -> Any:
    """An HTTP response's text; any other source as it is. An error page is not what was asked for,
    so that raises."""
    if not hasattr(source, "raise_for_status") or not hasattr(source, "iter_bytes"):
        return source
    source.raise_for_status()
    # Decoded here, UTF-8 that is cut off in the middle of a character is an error.
    encoding = (getattr(source, "encoding", None) or "utf-8").lower()
    what = "bytes" if encoding in ("utf-8", "utf8", "ascii", "us-ascii") else "text"
    stream = getattr(source, "stream", None)
    if is_async and (stream is None or hasattr(stream, "__aiter__")):
        return getattr(source, f"aiter_{what}")()
    return getattr(source, f"iter_{what}")()


def _is_iterable(source: Any) -> bool:
    return hasattr(source, "__aiter__") or hasattr(source, "__iter__")


def _iterator(source: Any) -> Iterator[Any]:
    try:
        return iter(source)
    except TypeError:
        raise UsageError(
            f"stream.pipe cannot read {type(source).__name__}: give an (async) iterator of text or "
            "bytes, an httpx response that was opened with stream(), an LLM provider's stream, or "
            "a callable that returns one of these"
        ) from None


async def _close(source: Any) -> None:
    """Let go of a source, however it was left."""
    close = getattr(source, "aclose", None) or getattr(source, "close", None)
    if close is not None:
        closed = close()
        if isawaitable(closed):
            await closed


def _close_here(source: Any) -> None:
    if hasattr(source, "close"):
        source.close()


class _Pump:
    """Reads a blocking source in a thread of its own, to which nobody else comes, and hands its
    items over as they come."""

    def __init__(self, source: Any, iterator: Iterator[Any]) -> None:
        self._source = source
        self._iterator = iterator
        self._items: deque[Any] = deque()
        self._loop = asyncio.get_running_loop()
        self._there = asyncio.Event()
        self._room = threading.Semaphore(_AHEAD)
        self._is_stopped = False

    def run(self) -> None:
        """The thread's own part."""
        try:
            for item in self._iterator:
                self._items.append(item)
                self._loop.call_soon_threadsafe(self._there.set)
                self._room.acquire()
                if self._is_stopped:
                    return
        finally:
            _close_here(self._source)

    async def take(self, reading: asyncio.Future[Any]) -> list[Any]:
        """The items that are there, one at least; none at the end."""
        while not self._items and not reading.done():
            self._there.clear()
            if not self._items:
                await self._there.wait()
        items = [self._items.popleft() for _ in range(len(self._items))]
        self._room.release(len(items)) if items else None
        return items

    def wake(self) -> None:
        """The thread has ended."""
        self._there.set()

    def stop(self) -> None:
        """Read no more, once the item that is being waited for is there."""
        self._is_stopped = True
        self._room.release()
