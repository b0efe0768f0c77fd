"""One application on each kind of engine: in its process, at a `dev` server, at one with keys."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.chaos.process import Server

MODULE = "durable_endpoints_server"


class Place(NamedTuple):
    """An application that runs, and the server that keeps its runs, if that is not itself."""

    kind: str
    app: Server
    server: Server | None
    signing_key: str
    event_key: str


def companion(folder: Path, command: str, *options: str, **env: str) -> Server:
    """A companion server: `dev` or `serve`."""
    folder.mkdir(exist_ok=True)
    database = f"sqlite:///{folder / 'server.db'}"
    options = ("--database", database, *options)
    return Server(folder, *options, app=command, alive="/health", module=MODULE, **env)


@pytest.fixture(scope="session", params=["embedded", "dev", "serve"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    kind: str = request.param
    folder = tmp_path_factory.mktemp(kind)
    server: Server | None = None
    settings: dict[str, str] = {}
    signing_key, event_key = secrets.token_hex(32), secrets.token_hex(16)
    with ExitStack() as stack:
        if kind != "embedded":
            keys = {
                "DURABLE_ENDPOINTS_SIGNING_KEY": signing_key,
                "DURABLE_ENDPOINTS_EVENT_KEY": event_key,
            }
            settings = keys if kind == "serve" else {}
            server = stack.enter_context(companion(folder / "server", kind, **settings))
            settings = {**settings, "DURABLE_ENDPOINTS_SERVER_URL": server.url}
        app = stack.enter_context(Server(folder, app="tests.server.app:app", **settings))
        yield Place(kind, app, server, signing_key, event_key)


@pytest.fixture
async def client(place: Place) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=place.app.url, timeout=30) as client:
        yield client


@pytest.fixture
def run() -> str:
    """A name that no other test uses."""
    return uuid.uuid4().hex
