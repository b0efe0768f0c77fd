"""A server behind a real socket, on the event loop of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn

from durable_endpoints_server.app import create_app
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.base import Store

DEV = ServerSettings(dev=True)


@asynccontextmanager
async def serving(
    store: Store, settings: ServerSettings = DEV
) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """A server, and a client that talks to it over HTTP."""
    server = Server(settings, store)
    config = uvicorn.Config(create_app(server), port=0, log_level="error", lifespan="on")
    front = uvicorn.Server(config)
    front.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(front.serve())
    while not front.started:
        await asyncio.sleep(0.005)
    port = front.servers[0].sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False
        ) as client:
            yield server, client
    finally:
        front.should_exit = front.force_exit = True
        await task
