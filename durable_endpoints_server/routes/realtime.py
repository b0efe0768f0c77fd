"""Streams of runs, and topics (Inngest realtime API): `publish/tee` takes in what an application
streams while it executes a run, `sse` gives it out; `token`, `publish` and `connect` are for
messages of topics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import orjson
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from durable_endpoints.protocol.errors import LimitError, LostRunError
from durable_endpoints.protocol.frames import CONTENT_TYPE
from durable_endpoints.protocol.streams import Silence, StreamStart
from durable_endpoints_server.inngest.apps import is_called_back
from durable_endpoints_server.realtime import (
    MAX_TOPICS,
    RUN_STREAM,
    Topic,
    final_frame,
    opened_by,
    run_token,
    topics_token,
)
from durable_endpoints_server.routes.answers import ApiError, as_json, authorise, data
from durable_endpoints_server.routes.bodies import read_body, read_json
from durable_endpoints_server.routes.cross_origin import OPEN, preflight
from durable_endpoints_server.routes.reading import ENVIRONMENT_ID, is_ulid, no_run, time_of
from durable_endpoints_server.server import Server
from durable_endpoints_server.stream_reader import Reader
from durable_endpoints_server.tees import Tee

MAX_MESSAGE: Final = 512 * 1024
"""Bytes of one message of a topic."""
_KEEP_ALIVE: Final = 15_000
"""Milliseconds."""
_HEARTBEAT: Final = b":\n\n"
"""A comment as Inngest's server sends it: its own tests know no other."""
_TOKEN_LIFE: Final = 60_000
_HEADERS: Final = {
    **OPEN,
    "Cache-Control": "no-cache, no-store",
    "X-Accel-Buffering": "no",
}
_ANSWER: Final = b"\nevent: inngest.response\n"


def routes(server: Server) -> list[BaseRoute]:
    host = server.host

    async def tee(request: Request) -> Response:
        authorise(server, request)  # before anything is read: it could not be sent again
        run_id = _channel(request)
        if not is_ulid(run_id) or await host.store.run(run_id) is None:
            raise no_run(run_id)
        live = host.live_run(run_id)
        if live is None:
            raise ApiError(
                409,
                f"Run {run_id} is not being executed: nothing is streamed for it.",
                "not_running",
            )
        if server.hub.is_executing(live.run):
            raise no_run(run_id)  # nobody but the process itself streams into it
        stream = server.tees.open(live)
        taking = asyncio.create_task(_take_in(request, stream))
        finished = asyncio.create_task(stream.finished.wait())
        try:
            # An application may leave it open when it has said everything: it is let go then.
            await asyncio.wait({taking, finished}, return_when=asyncio.FIRST_COMPLETED)
            if taking.done():
                taking.result()
        finally:
            stream.close()
            for task in (taking, finished):
                task.cancel()
            await asyncio.gather(taking, finished, return_exceptions=True)
        return data(None)

    def opened(connection: HTTPConnection) -> str | list[Topic]:
        scheme, _, bearer = connection.headers.get("authorization", "").partition(" ")
        token = bearer.strip() if scheme.lower() == "bearer" else ""
        token = token or connection.query_params.get("token", "")
        found = opened_by(server.keys, token, host.clock.now())
        if found is None:
            raise ApiError(401, "The token opens no stream, or not any more.", "unauthorized", OPEN)
        return found

    async def sse(request: Request) -> Response:
        if request.method == "OPTIONS":
            return preflight(request, "GET")
        found = opened(request)
        if request.method == "HEAD":
            return Response(None, 200, _HEADERS, CONTENT_TYPE)
        if isinstance(found, list):
            frames = _messages(server, found)
        elif await host.store.run(found) is None:
            raise ApiError(404, f"There is no run {found} any more.", "not_found", OPEN)
        else:
            frames = _run_stream(server, found, _position(request))
        return StreamingResponse(frames, 200, _HEADERS, CONTENT_TYPE)

    async def token(request: Request) -> Response:
        authorise(server, request)
        topics = _topics(await read_json(request, MAX_MESSAGE))
        if topics[0].name == RUN_STREAM:
            run_id = topics[0].channel
            entry = await host.store.entry(run_id) if is_ulid(run_id) else None
            if entry is None:
                raise no_run(run_id)
            if not is_called_back(entry.app):
                raise ApiError(
                    422,
                    f"Run {run_id} is one of our own SDK: its response is sealed, and it is "
                    "followed at its application's /wait.",
                    "sealed",
                )
            return as_json({"jwt": run_token(server.keys, run_id)}, 201)
        until = host.clock.now() + _TOKEN_LIFE
        return as_json({"jwt": topics_token(server.keys, topics, until)}, 201)

    async def publish(request: Request) -> Response:
        authorise(server, request)
        channel, names = _channel(request), request.query_params.getlist("topic")
        if not names:
            raise ApiError(400, "Name at least one topic: ?channel=…&topic=….", "invalid_query")
        body = await read_body(request, MAX_MESSAGE)
        message: dict[str, Any] = {
            "channel": channel,
            "kind": "data",
            "data": _value(body),
            "created_at": time_of(host.clock.now()),
            "env_id": ENVIRONMENT_ID,
        }
        if run_id := request.query_params.get("run_id"):
            message["run_id"] = run_id
        for name in names:
            text = orjson.dumps({**message, "topic": name})
            server.topics.publish(Topic(channel, name), text)
        return data(None)

    async def connect(socket: WebSocket) -> None:
        try:
            topics = opened(socket)
        except ApiError as error:
            await socket.close(1008, error.detail)
            return
        if isinstance(topics, str):
            await socket.close(1008, "A run's stream is read at /v1/realtime/sse.")
            return
        await socket.accept()
        leaving = asyncio.create_task(_until_left(socket))
        telling = asyncio.create_task(_tell(server, socket, topics))
        try:
            await asyncio.wait({leaving, telling}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (leaving, telling):
                task.cancel()
            await asyncio.gather(leaving, telling, return_exceptions=True)

    return [
        Route("/v1/realtime/publish/tee", tee, methods=["POST"]),
        Route("/v1/realtime/sse", sse, methods=["GET", "OPTIONS"]),
        Route("/v1/realtime/token", token, methods=["POST"]),
        Route("/v1/realtime/publish", publish, methods=["POST"]),
        WebSocketRoute("/v1/realtime/connect", connect),
    ]


async def _take_in(request: Request, stream: Tee) -> None:
    try:
        async for piece in request.stream():
            await stream.feed(piece)
    except ClientDisconnect:
        pass  # the application is gone: what becomes of its chunks, the engine decides
    except ValueError as error:
        raise ApiError(400, f"The stream is refused: {error}.", "invalid_body") from None
    except LimitError as error:
        raise ApiError(413, error.explanation, "too_large") from None
    except LostRunError:
        pass  # somebody else executes the run by now


async def _run_stream(server: Server, run_id: str, after: int) -> AsyncIterator[bytes]:
    """A run's stream from its log, and what comes, until its response."""
    reader = Reader(server.host.streams, run_id, StreamStart(after), is_verbatim=True)
    try:
        yield _HEARTBEAT
        while True:
            frames = await reader.next(_KEEP_ALIVE)
            if isinstance(frames, bytes):
                yield frames
                if _ANSWER in frames:
                    return
            elif frames is Silence.YET:
                yield _HEARTBEAT
            else:
                break
        ended = await server.host.store.ended(run_id)
        if frames is Silence.OVER and ended is not None:
            yield final_frame(ended)
    finally:
        reader.close()


async def _messages(server: Server, topics: list[Topic]) -> AsyncIterator[bytes]:
    listener = server.topics.listen(topics)
    try:
        yield _HEARTBEAT
        while not listener.is_released:
            messages = await listener.next(_KEEP_ALIVE / 1_000)
            yield b"".join(b"data: %b\n\n" % message for message in messages) or _HEARTBEAT
    finally:
        server.topics.leave(topics, listener)


async def _tell(server: Server, socket: WebSocket, topics: list[Topic]) -> None:
    listener = server.topics.listen(topics)
    try:
        while not listener.is_released:
            for message in await listener.next(_KEEP_ALIVE / 1_000):
                await socket.send_text(message.decode())
        await socket.close(1013, "Too slow, or the server is shutting down: connect again.")
    finally:
        server.topics.leave(topics, listener)


async def _until_left(socket: WebSocket) -> None:
    try:
        while True:
            await socket.receive_text()
    except (WebSocketDisconnect, KeyError):
        pass  # a KeyError: it sent bytes, which nobody asked for


def _channel(request: Request) -> str:
    channel = request.query_params.get("channel", "")
    if not channel:
        raise ApiError(400, "Name the channel: ?channel=….", "invalid_query")
    return channel


def _position(request: Request) -> int:
    """Where a client goes on that has had a part. Anything but a number is from the beginning."""
    given = request.headers.get("last-event-id", "")
    return int(given) if given.isascii() and given.isdecimal() and len(given) < 19 else 0


def _topics(form: Any) -> list[Topic]:
    if not isinstance(form, list) or not 0 < len(form) <= MAX_TOPICS:
        raise ApiError(400, f"Give an array of 1 to {MAX_TOPICS} topics.", "invalid_body")
    topics: list[Topic] = []
    for item in form:
        channel, name = (
            (item.get("channel"), item.get("name")) if isinstance(item, dict) else ("", "")
        )
        if not (isinstance(channel, str) and isinstance(name, str) and name):
            raise ApiError(400, 'A topic is {"channel": …, "name": …}.', "invalid_body")
        topics.append(Topic(channel, name))
    return topics


def _value(body: bytes) -> Any:
    """JSON, or else a text."""
    try:
        return orjson.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")
