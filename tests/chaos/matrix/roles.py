"""What the processes of the matrix do: each watches its boundaries.

Everything that is slow to import is imported here, once, before any of them is born.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import anyio._backends._asyncio
import fastapi
import httpx
import orjson
import uvicorn
import uvicorn.lifespan.on
import uvicorn.loops.auto
import uvicorn.loops.uvloop
import uvicorn.protocols.http.auto
import uvicorn.protocols.http.httptools_impl
import uvicorn.protocols.websockets.auto
import uvloop
import websockets.asyncio.client

import durable_endpoints
import durable_endpoints.engines.embedded
import durable_endpoints.engines.remote.engine
import durable_endpoints_server.cli
import durable_endpoints_server.serving
from tests.chaos.matrix import app
from tests.chaos.matrix.client import Client
from tests.chaos.matrix.crossings import Watched, watch_link, watch_store
from tests.chaos.matrix.jobs import from_json
from tests.chaos.matrix.switchboard import Switchboard

WARM: Final = (anyio, uvicorn, uvloop, websockets, durable_endpoints)


def warm_up() -> None:
    """Import what is imported by those who are used for the first time only."""
    fastapi.FastAPI().get("/")(lambda: None)
    httpx.AsyncClient(verify=False)
    httpx.Client(verify=False).close()


def _switchboard() -> Switchboard:
    return Switchboard(Path(os.environ["SWITCHBOARD"]))


def application(port: str) -> None:
    """uvicorn with the application, on the embedded engine or with a server."""
    switchboard = _switchboard()
    cross = switchboard.cross
    if "DURABLE_ENDPOINTS_SERVER_URL" in os.environ:
        watch_link(cross)
    else:
        watch_store(cross)
    app.observe(Path(os.environ["FOLDER"]), switchboard)
    uvicorn.run(
        Watched(app.app, cross),
        host="127.0.0.1",
        port=int(port),
        access_log=False,
        log_level="warning",
    )


def server(*arguments: str) -> None:
    """`durable-endpoints serve`."""
    cross = _switchboard().cross
    watch_store(cross)
    serving: Any = durable_endpoints_server.serving
    create_app = serving.create_app
    serving.create_app = lambda own: Watched(create_app(own), cross)
    durable_endpoints_server.cli.main(["serve", *arguments])


def client(base: str, jobs: str, records: str, events: str = "") -> None:
    """One client, until all its jobs are done. `events` is where a server takes events."""
    wanted = from_json(orjson.loads(Path(jobs).read_bytes()))
    asyncio.run(Client(base, Path(records), _switchboard().cross, events).do(wanted))


ROLES: dict[str, Callable[..., None]] = {
    "app": application,
    "server": server,
    "client": client,
}
