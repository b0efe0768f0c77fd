"""A server behind a real socket: on the event loop of the test, or in a thread beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Thread

import httpx
import uvicorn

from durable_endpoints_server.app import create_app
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.base import Store
from durable_endpoints_server.store.sqlite import SqliteStore

DEV = ServerSettings(dev=True)


@asynccontextmanager
async def serving(
    store: Store, settings: ServerSettings = DEV
) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """A server, and a client that talks to it over HTTP."""
    server = Server(settings, store)
    config = uvicorn.Config(
        create_app(server), port=0, log_level="error", lifespan="on", timeout_graceful_shutdown=1
    )
    front = uvicorn.Server(config)
    task = asyncio.create_task(front.serve())
    while not front.started:
        await asyncio.sleep(0.005)
    url = f"http://127.0.0.1:{front.servers[0].sockets[0].getsockname()[1]}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as client:
            yield server, client
    finally:
        front.should_exit = True
        await task


@contextmanager
def served_in_a_thread(path: Path, settings: ServerSettings = DEV) -> Iterator[str]:
    """The URL of a server on the database at `path`."""
    with asyncio.Runner() as runner:
        stop, urls = asyncio.Event(), asyncio.Queue[str]()

        async def serve() -> None:
            async with serving(SqliteStore(path), settings) as (_, client):
                urls.put_nowait(str(client.base_url).rstrip("/"))
                await stop.wait()

        loop = runner.get_loop()
        thread = Thread(target=runner.run, args=(serve(),))
        thread.start()
        try:
            yield asyncio.run_coroutine_threadsafe(urls.get(), loop).result(10)
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
