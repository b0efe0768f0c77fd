"""What `stream.pipe` takes, as pieces of text: iterators, HTTP responses, streams of LLM providers.

A provider's stream says itself when it is complete. One that ends without having said so was cut
off, and its text is not taken for the whole answer.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from inspect import isawaitable
from typing import Any

from durable_endpoints.calls import call_in_thread
from durable_endpoints.errors import TruncatedStreamError, UsageError

Source = str | bytes | Iterable[Any] | AsyncIterable[Any] | Callable[[], Any] | Any
"""An (async) iterator of text, of bytes, or of what an LLM provider streams; an httpx response that
was not read yet; or a callable, which may be async, that returns one of these."""

_AT_ONCE = 64
"""How many items of a blocking iterator are fetched in one visit to a worker thread …"""
_AT_MOST = 0.005
"""… and for how long, in seconds: a slow source is not held back."""


async def texts(source: Source) -> AsyncIterator[str]:
    """The source's text, piece by piece, on the event loop. Blocking sources are read in worker
    threads."""
    source = await _opened(source)
    text = Text()
    if isinstance(source, str | bytes | list | tuple):
        for item in [source] if isinstance(source, str | bytes) else source:
            yield text.of(item)
    elif hasattr(source, "__aiter__"):
        try:
            async for item in source:
                yield text.of(item)
        finally:
            await _close(source)
    else:
        iterator = _iterator(source)
        try:
            while items := await call_in_thread(_some, iterator):
                for item in items:
                    yield text.of(item)
        finally:
            await _close(source)
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
    text = Text()
    if isinstance(source, str | bytes):
        yield text.of(source)
    else:
        source = _response_text(source, "iter_text")
        try:
            for item in _iterator(source):
                yield text.of(item)
        finally:
            if hasattr(source, "close"):
                source.close()
    yield text.end()


async def _opened(source: Source) -> Any:
    if callable(source) and not _is_iterable(source):
        source = source()
    if isawaitable(source) and not _is_iterable(source):
        source = await source
    return _response_text(source, "aiter_text", "iter_text")


async def _close(source: Any) -> None:
    """Let go of a source, however it was left. One that another thread is in cannot be closed."""
    close = getattr(source, "aclose", None) or getattr(source, "close", None)
    if close is not None:
        try:
            closed = close()
            if isawaitable(closed):
                await closed
        except ValueError:
            pass  # "generator already executing", in its thread


def _response_text(source: Any, *methods: str) -> Any:
    """An HTTP response's text; any other source as it is. An error page is not what was asked
    for, so that raises."""
    if not hasattr(source, "raise_for_status") or not hasattr(source, methods[0]):
        return source
    source.raise_for_status()
    stream = getattr(source, "stream", None)
    for method in methods:
        wanted = "__aiter__" if method.startswith("a") else "__iter__"
        if stream is None or hasattr(stream, wanted):
            return getattr(source, method)()
    return source


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


def _some(iterator: Iterator[Any]) -> list[Any]:
    """The next items: at least one, unless there are none."""
    items: list[Any] = []
    began = time.monotonic()
    for item in iterator:
        items.append(item)
        if len(items) >= _AT_ONCE or time.monotonic() - began > _AT_MOST:
            break
    return items


class Text:
    """Makes text of the items of one source."""

    __slots__ = ("_decoder", "_is_complete", "_is_provider")

    def __init__(self) -> None:
        self._decoder: codecs.IncrementalDecoder | None = None
        self._is_provider = self._is_complete = False

    def of(self, item: Any) -> str:
        """The text of one item, which is empty if the item has none."""
        if type(item) is str:
            return item
        if isinstance(item, bytes | bytearray | memoryview):
            # A character may be split between two items.
            if self._decoder is None:
                self._decoder = codecs.getincrementaldecoder("utf-8")()
            return self._decoder.decode(bytes(item))
        if isinstance(item, str):
            return str(item)
        return self._of_provider(item)

    def end(self) -> str:
        """What is left. Raises if the source was cut off."""
        if self._is_provider and not self._is_complete:
            raise TruncatedStreamError(
                "the provider's stream ended before the provider said that it was complete"
            )
        return "" if self._decoder is None else self._decoder.decode(b"", final=True)

    def _of_provider(self, item: Any) -> str:
        """An item of OpenAI's chat completions, or an event of its responses or of Anthropic's
        messages."""
        self._is_provider = True
        choices = getattr(item, "choices", None)
        if isinstance(choices, list):
            text = ""
            for choice in choices:
                if getattr(choice, "index", 0) == 0:
                    text += getattr(getattr(choice, "delta", None), "content", None) or ""
                    self._is_complete |= getattr(choice, "finish_reason", None) is not None
            return text
        kind = getattr(item, "type", None)
        if not isinstance(kind, str):
            raise UsageError(
                f"stream.pipe got a {type(item).__name__} from its source: it takes text, bytes, "
                "and the streams of OpenAI's and Anthropic's clients; for anything else iterate "
                "yourself, and stream.push() what readers shall get"
            )
        self._is_complete |= kind in ("response.completed", "response.incomplete", "message_stop")
        delta = getattr(item, "delta", None)
        if kind == "response.output_text.delta" and isinstance(delta, str):
            return delta
        if kind == "content_block_delta":
            return getattr(delta, "text", None) or ""
        return ""
