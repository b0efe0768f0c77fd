"""Following a run's stream from outside: from where a reader says, to the run's end.

GET /wait?runId=…&token=…          Accept: text/event-stream
Last-Event-ID: 17, or ?from=17     only what comes after position 17
?view=committed                    only chunks that are committed
?after=sync                        only what follows the stream of the original request
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from starlette.datastructures import QueryParams
from starlette.responses import Response
from starlette.types import Send

from durable_endpoints import answers
from durable_endpoints.engines.base import Engine, Outcome
from durable_endpoints.errors import EngineError
from durable_endpoints.event_stream import EventStream
from durable_endpoints.protocol.frames import response_frame
from durable_endpoints.protocol.messages import Headers, StoredResponse
from durable_endpoints.protocol.streams import Silence, StreamStart
from durable_endpoints.requests import header

if TYPE_CHECKING:
    from durable_endpoints.application import Application

logger = logging.getLogger("durable_endpoints")

_POSITION = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,15}))?")
_SSE = re.compile(r"(?:^|,)\s*text/event-stream\s*(?:;([^,]*))?(?:,|$)", re.IGNORECASE)
_REFUSED = re.compile(r"(?:^|;)\s*q=0(?:\.0*)?\s*(?:;|$)")


def accepts_stream(headers: Headers) -> bool:
    """Whether the client asks for `text/event-stream` by name (RFC 9110 §12.5.1)."""
    for name, value in headers:
        if name == b"accept" and b"event-stream" in value.lower():
            found = _SSE.search(value.decode("latin-1"))
            return found is not None and not _REFUSED.search(found[1] or "")
    return False


def is_ours(headers: Headers) -> bool:
    """Whether the client is one of this project's, which takes every response as it is."""
    return header(headers, b"durable-client") is not None


def stream_start(headers: Headers, query: QueryParams) -> StreamStart:
    """Where a reader wants to begin. Raises `ValueError` that says what is wrong."""
    view = query.get("view", "all")
    if view not in ("all", "committed"):
        raise ValueError(f'view={view!r}: give "all" or "committed"')
    committed = view == "committed"
    wanted = header(headers, b"last-event-id") or query.get("from")
    if wanted is None:
        skips_sync = query.get("after") == "sync" and not committed
        return StreamStart(committed=committed, skips_sync=skips_sync)
    found = _POSITION.fullmatch(wanted)
    if found is None or (found[2] is not None and not committed):
        raise ValueError(f"{wanted!r} is not a position: give the id of the last event you have")
    if found[2] is None:
        return StreamStart(int(found[1]), committed=committed)
    return StreamStart(max(0, int(found[1]) - 1), int(found[2]), committed=True)


async def follow(
    application: Application,
    outcome: Outcome,
    headers: Headers,
    query: QueryParams,
    extra: Headers,
    send: Send,
    until_gone: Callable[[], Awaitable[None]],
) -> Response | None:
    """Send the stream of the run that `outcome` is about, from where the request's `headers` and
    `query` want it to begin, to its end; or return what is to be answered instead.

    `extra` is added to the stream's own headers; `until_gone` returns when the client has left.
    """
    engine, run_id = application.engine, outcome.run_id
    try:
        start = stream_start(headers, query)
    except ValueError as error:
        return answers.problem(400, "bad_request", str(error))
    if start.after and (refusal := await _beyond_the_end(engine, outcome, start.after)):
        return refusal
    reader = engine.read_stream(run_id, start)
    gone = asyncio.ensure_future(until_gone())
    gone.add_done_callback(lambda _: reader.poke())
    stream = EventStream(run_id, reader, send, application.settings.heartbeat)
    try:
        await stream.begin(extra, outcome.status)
        try:
            silence = await stream.relay(gone.done)
            if silence is Silence.OVER:
                await _end(engine, run_id, stream, is_ours(headers))
            elif not gone.done():
                await stream.end()
        except EngineError as error:
            logger.error("a stream of run %s is broken off: %s", run_id, error)
            await stream.end()
    except OSError:
        pass  # the client has left (ASGI HTTP spec 2.4 lets `send` raise then)
    finally:
        gone.cancel()
        reader.close()
    return None


async def _beyond_the_end(engine: Engine, outcome: Outcome, after: int) -> Response | None:
    """The answer to a reader who has everything already, or claims what nobody can have."""
    tail = await engine.stream_tail(outcome.run_id)
    if after <= tail:
        return None
    headers = answers.durable_headers(outcome.run_id, outcome.status)
    if outcome.is_final and after == tail + 1:
        # Whoever asks again after the end, as EventSource does, shall not (WHATWG HTML §9.2.3).
        return Response(status_code=204, headers=headers)
    detail = f"The stream of this run has no position {after}: {tail} is its last one."
    return answers.problem(400, "bad_request", detail, headers)


async def _end(engine: Engine, run_id: str, stream: EventStream, for_us: bool) -> None:
    outcome = await engine.outcome(run_id, 0)
    if outcome is None:
        await stream.end()  # its retention has just ended
        return
    # A run that is parked may go on, and needs the position itself then.
    position = stream.reader.position + 1 if outcome.is_final else None
    await stream.end(outcome_frame(outcome, position, for_us))
    if outcome.until_delivered and outcome.response is not None:
        engine.delivered(run_id)


def outcome_frame(outcome: Outcome, position: int | None, for_us: bool) -> bytes:
    """The last frame: the run's own response, or what `/wait` would answer instead."""
    response = outcome.response
    if response is None:
        problem = answers.outcome_problem(outcome)
        response = StoredResponse(problem.status_code, problem.raw_headers, bytes(problem.body))
    succeeded = outcome.status == "completed" and outcome.response is not None
    return response_frame(response, succeeded, position, for_us)
