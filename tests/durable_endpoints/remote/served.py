"""An application and a server in one process, with a connection in memory between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from durable_endpoints.asgi_transport import AppTransport
from durable_endpoints.engines.remote.dialing import LostConnectionError
from durable_endpoints.engines.remote.engine import RemoteEngine
from durable_endpoints.settings import Settings
from durable_endpoints_server.remote.hub import Hub
from durable_endpoints_server.remote.transport import TransportClosedError
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.base import Store
from durable_endpoints_server.store.memory import MemoryStore
from tests.durable_endpoints.helpers import fast
from tests.durable_endpoints_server.remote.ends import MemoryEnd, memory_pair

KEY = "a key for tests, and for nothing else"


class Line:
    """One end in memory, as the SDK's connection."""

    def __init__(self, end: MemoryEnd) -> None:
        self.end = end

    async def send(self, message: bytes) -> None:
        try:
            await self.end.send(message.decode())
        except TransportClosedError as error:
            raise LostConnectionError(str(error)) from None

    async def receive(self) -> str:
        try:
            return await self.end.receive()
        except TransportClosedError as error:
            raise LostConnectionError(str(error)) from None

    async def close(self) -> None:
        await self.end.close()


class Companion:
    """A server in this process, which can be killed and started again on the same store."""

    def __init__(self, store: Store | None = None, **settings: Any) -> None:
        self.store = store if store is not None else MemoryStore()
        self.settings = ServerSettings(dev=True, **settings)
        self.server: Server | None = None
        self.lines: list[Line] = []
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self.server = Server(self.settings, self.store)
        await self.server.start()

    async def stop(self) -> None:
        """Without a word, as if it was killed."""
        server, self.server = self.server, None
        assert server is not None
        self.cut()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        server.host.store = MemoryStore()
        await server.host.stop()

    def cut(self) -> None:
        """Lose all connections."""
        lines, self.lines = self.lines, []
        for line in lines:
            line.end.cut()

    @property
    def hub(self) -> Hub:
        assert self.server is not None
        return self.server.hub

    async def dial(self) -> Line:
        if self.server is None:
            raise LostConnectionError("connection refused")
        ours, theirs = memory_pair()
        task = asyncio.create_task(self.hub.serve(theirs))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        line = Line(ours)
        self.lines.append(line)
        return line


@asynccontextmanager
async def process(
    companion: Companion, app: FastAPI | None = None, **settings: Any
) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient, RemoteEngine]]:
    """An application's process, its client, and its engine."""
    given = {
        "server_url": "http://127.0.0.1:1",
        "signing_key": KEY,
        "sealing_key": KEY,
        "server_timeout": 5,
        **settings,
    }
    engine = RemoteEngine(Settings.load(given, {}), companion.dial)
    app = app if app is not None else fast(None)
    app.user_middleware[0].kwargs["engine"] = engine
    await engine.start(for_good=True)
    try:
        async with httpx.AsyncClient(
            transport=AppTransport(app), base_url="http://test", timeout=20
        ) as client:
            yield app, client, engine
    finally:
        await engine.stop()
