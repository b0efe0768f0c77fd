"""Following a run's stream from outside: from where a reader says, to the run's end.

GET /wait?runId=…&token=…          Accept: text/event-stream
Last-Event-ID: 17, or ?from=17     only what comes after position 17
?view=committed                    only chunks that are committed
?after=sync                        only what follows the stream of the original request
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

from starlette.datastructures import QueryParams
from starlette.types import Send

from durable_endpoints import answers
from durable_endpoints.engines.base import Engine, Outcome, StreamStart
from durable_endpoints.errors import EngineError
from durable_endpoints.event_stream import EventStream, logger
from durable_endpoints.protocol.frames import response_frame
from durable_endpoints.protocol.messages import Headers, StoredResponse
from durable_endpoints.protocol.streams import Silence
from durable_endpoints.requests import header

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
    engine: Engine,
    outcome: Outcome,
    start: StreamStart,
    headers: Headers,
    send: Send,
    until_gone: Callable[[], Awaitable[None]],
    heartbeat: int,
    for_us: bool,
) -> None:
    """Send the stream of the run that `outcome` is about. `headers` are added to those of every
    stream; `until_gone` returns when the client has left; `for_us` as in `response_frame`."""
    reader = engine.read_stream(outcome.run_id, start)
    gone = asyncio.ensure_future(until_gone())
    gone.add_done_callback(lambda _: reader.poke())
    stream = EventStream(outcome.run_id, reader, send, heartbeat)
    try:
        await stream.begin(headers, outcome.status)
        silence = await stream.relay(gone.done)
        if silence is Silence.OVER:
            await _end(engine, outcome.run_id, stream, for_us)
        elif not gone.done():
            await stream.end()
    except EngineError as error:
        logger.error("a stream of run %s is broken off: %s", outcome.run_id, error)
        await stream.end()
    except OSError:
        pass  # the client has left (ASGI HTTP spec 2.4 lets `send` raise then)
    finally:
        gone.cancel()
        reader.close()


async def _end(engine: Engine, run_id: str, stream: EventStream, for_us: bool) -> None:
    outcome = await engine.outcome(run_id, 0)
    if outcome is None:
        await stream.end()  # its retention has just ended
        return
    position = stream.reader.position + 1
    await stream.end(outcome_frame(outcome, position, for_us))
    if outcome.until_delivered and outcome.response is not None:
        engine.delivered(run_id)


def outcome_frame(outcome: Outcome, position: int, for_us: bool) -> bytes:
    """The last frame: the run's own response, or what `/wait` would answer instead."""
    response = outcome.response
    if response is None:
        problem = answers.outcome_problem(outcome)
        response = StoredResponse(problem.status_code, problem.raw_headers, bytes(problem.body))
    return response_frame(response, outcome.status == "completed", position, for_us)
