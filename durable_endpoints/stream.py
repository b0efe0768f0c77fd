"""`stream`: what a handler calls to let its readers see now what it is working on."""

from __future__ import annotations

from typing import Any

from durable_endpoints.bodies import NeedsNewExecutionError
from durable_endpoints.errors import UsageError
from durable_endpoints.sinks import sink_of
from durable_endpoints.sources import Source, blocking_texts, texts
from durable_endpoints.step import step
from durable_endpoints.where import on_event_loop


class _Once:
    """A source that a step was given, and that cannot be read again if it is an iterator."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._is_used = False

    @staticmethod
    def source_of(source: Source) -> Source:
        """The source itself. Raises if an earlier try has read it: the handler has to make a new
        one."""
        if not isinstance(source, _Once):
            return source
        if source._is_used and not callable(source._source):
            raise NeedsNewExecutionError
        source._is_used = True
        return source._source


class SyncStream:
    """The namespace `stream.sync`, for plain `def` handlers and steps."""

    def pipe(self, source: Source) -> str:
        """As `stream.pipe`, in the calling thread, which waits."""
        sink = sink_of("stream.sync.pipe")
        if sink is not None and on_event_loop():
            raise UsageError(
                "stream.sync.pipe would block the event loop: write `await stream.pipe(…)`"
            )
        if sink is not None and sink.scope is None:
            once: Any = _Once(source)
            return step.sync.run(sink.execution.name_pipe(), self.pipe, once)
        pieces: list[str] = []
        for text in blocking_texts(_Once.source_of(source)):
            pieces.append(text)
            if sink is not None and text:
                sink.push(text, "stream.sync.pipe")
                if sink.execution.session.is_full:
                    sink.execution.run_from_thread(sink.execution.session.room())
        return "".join(pieces)


class Stream:
    """The namespace `stream`."""

    def __init__(self) -> None:
        self.sync = SyncStream()
        """The same for plain `def` functions: blocking."""

    def push(self, data: Any) -> None:
        """Stream one JSON value to whoever reads this run, now.

        Inside a step it belongs to that try of the step: permanent once the step is done, withdrawn
        if the try fails. Outside a step it belongs to the handler, is streamed once however often
        the handler runs, and permanent with the next thing that is remembered.

        Only puts the value into a buffer and never waits; `pipe` does. Works from threads that
        carry the context (those of `asyncio.to_thread` and of plain steps do, a `threading.Thread`
        does not: there it does nothing). Raises
        `LimitError` when more is streamed than a run may (`max_stream`), or than the buffer holds;
        `StepValueError` for what is not JSON; `NotInRunError` in a request outside a run. Outside
        any request it does nothing.
        """
        sink = sink_of("stream.push")
        if sink is not None:
            sink.push(data, "stream.push")

    async def pipe(self, source: Source) -> str:
        """Stream a text as it comes, and return the whole of it.

        `source` is an async iterator or an iterator of text or bytes (UTF-8, split anywhere), an
        httpx response opened with `stream()`, a stream of OpenAI's or Anthropic's client, or a
        callable that returns one of these; what blocks is read in a worker thread. A source that
        fails fails the step; a provider's stream that was cut off raises `TruncatedStreamError`
        (give the stream itself: its plain text, such as Anthropic's `text_stream`, does not show
        that). A client that leaves changes nothing. Waits when the source is faster than the disk.

        Outside a step it makes one of its own, named `stream.pipe`, `stream.pipe 2` … : a replay
        has the text from memory, and does not ask the source for it again. Outside any request it
        just returns the text.
        """
        sink = sink_of("stream.pipe")
        if sink is not None and sink.scope is None:
            once: Any = _Once(source)
            return await step.run(sink.execution.name_pipe(), self.pipe, once)
        pieces: list[str] = []
        async for text in texts(_Once.source_of(source)):
            pieces.append(text)
            if sink is not None and text:
                sink.push(text, "stream.pipe")
                if sink.execution.session.is_full:
                    await sink.execution.session.room()
        return "".join(pieces)


stream = Stream()
