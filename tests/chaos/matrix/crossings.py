"""Watching the boundaries from outside: what is shipped is wrapped, and knows nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import apsw
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Cross = Callable[[str], None]


def watch_store(cross: Cross) -> None:
    """The store's writing thread, and what it tells the event loop."""
    from durable_endpoints_server.store import group_commit
    from durable_endpoints_server.store.sqlite import SqliteStore

    write, sync, opened = SqliteStore._write, SqliteStore._sync, SqliteStore._open_writer
    wake = group_commit._wake

    def watched_write(self: SqliteStore, *arguments: Any) -> Any:
        cross("before-write")
        refused = write(self, *arguments)
        cross("after-write")
        return refused

    def watched_sync(self: SqliteStore) -> None:
        cross("before-sync")
        sync(self)

    def watched_open(self: SqliteStore, *arguments: Any) -> apsw.Connection:
        connection = opened(self, *arguments)

        def committing() -> bool:
            cross("inside-write")
            return False

        connection.set_commit_hook(committing)
        return connection

    def watched_wake(*arguments: Any) -> None:
        cross("before-acknowledgement")
        wake(*arguments)
        cross("after-acknowledgement")

    _put(SqliteStore, "_write", watched_write)
    _put(SqliteStore, "_sync", watched_sync)
    _put(SqliteStore, "_open_writer", watched_open)
    _put(group_commit, "_wake", watched_wake)


def watch_link(cross: Cross) -> None:
    """The application's end of its connection to a server."""
    from durable_endpoints.engines.remote.dialing import _WebSocket

    send, receive = _WebSocket.send, _WebSocket.receive
    busy = False

    async def watched_send(self: _WebSocket, message: bytes) -> None:
        cross("before-message")
        await send(self, message)
        cross("after-message")

    async def watched_receive(self: _WebSocket) -> bytes | str:
        nonlocal busy
        if busy:
            cross("message-handled")
        message = await receive(self)
        busy = True
        cross("message-arrived")
        return message

    _put(_WebSocket, "send", watched_send)
    _put(_WebSocket, "receive", watched_receive)


def _put(owner: Any, name: str, value: Any) -> None:
    assert hasattr(owner, name)
    setattr(owner, name, value)


class Watched:
    """An ASGI application whose requests and connections are watched."""

    def __init__(self, app: ASGIApp, cross: Cross) -> None:
        self._app = app
        self._cross = cross

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            answer = _Answer(send, self._cross)
            await self._app(scope, self._reading(receive), answer.send)
        elif scope["type"] == "websocket":
            await self._app(scope, self._hearing(receive), self._saying(send))
        else:
            await self._app(scope, receive, send)

    def _reading(self, receive: Receive) -> Receive:
        async def watched() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                self._cross("request-read")
            return message

        return watched

    def _hearing(self, receive: Receive) -> Receive:
        busy = False

        async def watched() -> Message:
            nonlocal busy
            if busy:
                self._cross("message-handled")
            message = await receive()
            if message["type"] == "websocket.receive":
                busy = True
                self._cross("message-arrived")
            return message

        return watched

    def _saying(self, send: Send) -> Send:
        async def watched(message: Message) -> None:
            if message["type"] != "websocket.send":
                await send(message)
                return
            self._cross("before-message")
            await send(message)
            self._cross("after-message")

        return watched


class _Answer:
    """One answer on its way out."""

    def __init__(self, send: Send, cross: Cross) -> None:
        self._send = send
        self._cross = cross
        self._is_stream = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            content_type = dict(message["headers"]).get(b"content-type", b"")
            self._is_stream = content_type.startswith(b"text/event-stream")
            self._cross("before-answer")
            await self._send(message)
            self._cross("answer-begun")
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            await self._last(message)
        else:
            await self._send(message)
            if message["type"] == "http.response.body":
                self._cross("mid-stream" if self._is_stream else "mid-answer")

    async def _last(self, message: Message) -> None:
        body = message.get("body", b"")
        if body:
            await self._send({**message, "body": body[:-1], "more_body": True})
        self._cross("before-last-byte")
        await self._send({**message, "body": body[-1:]})
        self._cross("after-last-byte")
