"""The wire over a real network: keys, event loops that come and go, and scripts."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.responses import Response
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from durable_endpoints import (
    DurableEndpointsMiddleware,
    endpoint,
    endpoint_proxy,
    send_event,
    send_signal,
    step,
)
from durable_endpoints.errors import ConfigurationError, StorageError
from durable_endpoints_server.app import create_app
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.memory import MemoryStore

OLD, NEW = "signkey-prod-" + "01" * 32, "signkey-prod-" + "23" * 32


@contextmanager
def served(**settings: Any) -> Iterator[str]:
    """A server in a thread of its own, and its URL."""
    with listening(create_app(Server(ServerSettings(**settings), MemoryStore()))) as url:
        yield url


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """An application in a thread of its own, and its URL."""
    config = uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(5)


@pytest.fixture(scope="module")
def dev() -> Iterator[str]:
    with served(dev=True) as url:
        yield url


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the key file goes."""
    monkeypatch.chdir(tmp_path)


def application(url: str, **settings: Any) -> FastAPI:
    app = FastAPI()
    app.add_middleware(DurableEndpointsMiddleware, server_url=url, **settings)
    app.mount("/wait", endpoint_proxy())

    @app.post("/work/{n}")
    @endpoint
    async def work(n: int) -> int:
        twice = await step.run("twice", lambda: n * 2)
        await step.sleep("nap", "50ms")
        return await step.run("more", lambda: twice + 1)

    @app.post("/wait-for")
    @endpoint
    async def wait_for() -> Any:
        event = await step.wait_for_event("e", event="from outside", timeout="1h")
        return event and event.data

    @app.post("/signal")
    @endpoint
    async def signal() -> Any:
        got = await step.wait_for_signal("s", signal="from outside", timeout="1h")
        return got and got.data

    return app


def test_an_application_works_with_a_lifespan(dev: str) -> None:
    with TestClient(application(dev)) as client:
        assert client.post("/work/4").json() == 9


def test_it_works_where_each_request_has_an_event_loop_of_its_own(dev: str) -> None:
    client = TestClient(application(dev, app_name="loops"))
    assert [client.post(f"/work/{n}").json() for n in range(3)] == [1, 3, 5]


def test_a_key_file_is_made_where_the_server_is_on_this_machine(dev: str, tmp_path: Path) -> None:
    with TestClient(application(dev)) as client:
        where = client.post("/work/1", follow_redirects=False).headers["location"]
    assert (tmp_path / ".durable" / "endpoints.key").stat().st_mode & 0o777 == 0o600
    with TestClient(application(dev)) as another:  # as another replica, or after a new start
        assert another.get(where).json() == 3


def test_a_server_elsewhere_needs_keys() -> None:
    for given, missing in (
        ({}, "SIGNING_KEY"),
        ({"signing_key": OLD}, "SEALING_KEY"),
    ):
        app = application("https://durable.example.com", **given)
        with pytest.raises(ConfigurationError, match=missing), TestClient(app):
            pass


def test_scripts_send_events_and_signals(dev: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURABLE_ENDPOINTS_SERVER_URL", dev)
    with TestClient(application(dev, app_name="scripts")) as client:
        event = client.post("/wait-for", follow_redirects=False).headers["location"]
        signal = client.post("/signal", follow_redirects=False).headers["location"]
        in_script(lambda: send_event("from outside", {"n": 1}))
        assert in_script(lambda: send_signal("from outside", "go")) is True
        assert in_script(lambda: send_signal("from outside", "go")) is False
        assert client.get(event).json() == {"n": 1}
        assert client.get(signal).json() == "go"


def test_an_event_from_outside_requests_finds_a_server_that_no_variable_names(dev: str) -> None:
    app = application(dev, app_name="tasks")

    @app.get("/task")
    async def task() -> str:
        """As one that was started with the application."""
        sending = send_event("from outside", {"n": 2})
        return await asyncio.create_task(sending, context=Context())

    with TestClient(app) as client:
        where = client.post("/wait-for", follow_redirects=False).headers["location"]
        assert client.get("/task").status_code == 200
        assert client.get(where).json() == {"n": 2}


def test_a_script_is_told_that_the_server_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURABLE_ENDPOINTS_SERVER_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("DURABLE_ENDPOINTS_SERVER_TIMEOUT", "200ms")
    with pytest.raises(StorageError, match="does not take it"):
        asyncio.run(send_event("from outside"))


def test_a_key_is_rotated_in_any_order() -> None:
    """Each side may have the new key first."""
    keys: dict[str, Any] = {"signing_key": NEW, "signing_key_fallback": OLD, "sealing_key": OLD}
    with served(signing_keys=(OLD,)) as url, TestClient(application(url, **keys)) as client:
        where = client.post("/work/4", follow_redirects=False).headers["location"]
        assert client.get(where).json() == 9
    old: dict[str, Any] = {"signing_key": OLD, "sealing_key": OLD}
    with served(signing_keys=(NEW, OLD)) as url, TestClient(application(url, **old)) as client:
        assert client.post("/work/4").json() == 9


def test_a_wrong_key_is_told_in_the_503(caplog: pytest.LogCaptureFixture) -> None:
    keys: dict[str, Any] = {"signing_key": NEW, "sealing_key": NEW, "server_timeout": "200ms"}
    with served(signing_keys=(OLD,)) as url, TestClient(application(url, **keys)) as client:
        response = client.post("/work/4")
        assert response.status_code == 503
        assert "refuses the signing key" in response.json()["detail"]
        assert "DURABLE_ENDPOINTS_SIGNING_KEY" in caplog.text


def test_a_proxy_that_drops_the_upgrade_is_named_and_not_taken_for_another_server() -> None:
    server = create_app(Server(ServerSettings(dev=True), MemoryStore()))

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await server(scope, receive, send)
            return
        got = TestClient(server).get(scope["path"])  # what such a proxy makes of it
        denied = Response(got.content, got.status_code)
        await WebSocket(scope, receive, send).send_denial_response(denied)

    with (
        listening(proxy) as url,
        TestClient(application(url, server_timeout="200ms")) as client,
    ):
        response = client.post("/work/4")
    assert response.status_code == 503
    assert "pass on the headers Upgrade" in response.json()["detail"]


def test_where_no_server_is_one_reads_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    def detail(url: str) -> str:
        with TestClient(application(url, server_timeout="200ms")) as client:
            response = client.post("/work/4")
            assert response.status_code == 503
            assert f"{url} is away" in caplog.text
            return str(response.json()["detail"])

    with served(signing_keys=(OLD,)) as url:
        assert "it wants a signing key: set DURABLE_ENDPOINTS_SIGNING_KEY" in detail(url)
    with served(dev=True) as url:
        assert "begins with http://" in detail(url.replace("http:", "https:"))
        assert "A server's URL has no path" in detail(url + "/api")
    with listening(FastAPI()) as url:  # which refuses any WebSocket
        assert "is that a server of durable endpoints" in detail(url)


def in_script(send: Any) -> Any:
    """In another process, as far as this one tells: with no application of its own."""
    from durable_endpoints.engines.remote import engine

    kept = dict(engine._shared)
    engine._shared.clear()
    try:
        return asyncio.run(send())
    finally:
        engine._shared.update(kept)
