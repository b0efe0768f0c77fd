"""`stream`: what a handler calls to let its readers see now what it is working on."""

from __future__ import annotations

from typing import Any, NamedTuple

from durable_endpoints._context import current
from durable_endpoints.errors import NotInRunError, StepValueError, UsageError
from durable_endpoints.execution import Execution, StepScope
from durable_endpoints.protocol.streams import OUTSIDE
from durable_endpoints.protocol.values import NotJsonError, encode
from durable_endpoints.sources import Source, blocking_texts, texts
from durable_endpoints.where import on_event_loop


class _Sink(NamedTuple):
    """Where chunks go."""

    execution: Execution
    step: str
    attempt: int

    def push(self, data: Any, what: str) -> None:
        try:
            value = encode(data)
        except NotJsonError as error:
            raise StepValueError(f"{what}: the value cannot be streamed: {error}") from None
        self.execution.push(self.step, self.attempt, value)


class SyncStream:
    """The namespace `stream.sync`, for plain `def` handlers and steps."""

    def pipe(self, source: Source) -> str:
        """As `stream.pipe`, in the calling thread, which waits."""
        sink = _sink("stream.sync.pipe")
        if sink is not None and on_event_loop():
            raise UsageError(
                "stream.sync.pipe would block the event loop: write `await stream.pipe(…)`"
            )
        pieces: list[str] = []
        for text in blocking_texts(source):
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

        Only puts the value into a buffer, from any thread, and never waits; `pipe` does. Raises
        `LimitError` when more is streamed than a run may (`max_stream`), or than the buffer holds;
        `StepValueError` for what is not JSON; `NotInRunError` in a request outside a run. Outside
        any request it does nothing.
        """
        sink = _sink("stream.push")
        if sink is not None:
            sink.push(data, "stream.push")

    async def pipe(self, source: Source) -> str:
        """Stream a text as it comes, and return the whole of it.

        `source` is an async iterator or an iterator of text or bytes (UTF-8, split anywhere), an
        httpx response opened with `stream()`, a stream of OpenAI's or Anthropic's client, or a
        callable that returns one of these. A source that fails fails the step; a provider's stream
        that was cut off raises `TruncatedStreamError`. A client that leaves changes nothing. Waits
        when the source is faster than the disk. Outside any request it just returns the text.
        """
        sink = _sink("stream.pipe")
        pieces: list[str] = []
        async for text in texts(source):
            pieces.append(text)
            if sink is not None and text:
                sink.push(text, "stream.pipe")
                if sink.execution.session.is_full:
                    await sink.execution.room()
        return "".join(pieces)


def _sink(what: str) -> _Sink | None:
    """Where chunks of the calling code go; None outside any request."""
    place = current.place
    if place is None:
        return None
    if isinstance(place, StepScope):
        if place.ended:
            raise NotInRunError(
                f"{what} is called after the end of step {str(place.step)!r}, or of this try of it"
            )
        return _Sink(place.execution, place.step.hash, place.attempt)
    execution: Execution | None = place.execution
    if execution is None:
        raise NotInRunError(f"{what} is called outside a run: {place.explanation}")
    if execution.is_closed:
        raise NotInRunError(
            f"{what} is called after the response of this run: nobody would read it. Stream before "
            "the handler returns"
        )
    return _Sink(execution, OUTSIDE, 0)


stream = Stream()
