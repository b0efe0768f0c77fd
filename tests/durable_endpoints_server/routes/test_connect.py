"""Connections of processes over a real WebSocket, and their heartbeats."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from durable_endpoints.protocol import signing, wire
from durable_endpoints_server.app import create_app
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.memory import MemoryStore
from tests.durable_endpoints_server.remote.fakes import done, end, record, register

KEY = "signkey-prod-0123456789abcdef0123456789abcdef"


def client(**settings: Any) -> TestClient:
    options = {"dev": True, **settings}
    app = create_app(Server(ServerSettings(**options), MemoryStore()))
    return TestClient(app, base_url="http://127.0.0.1:8288")


def hello(name: str = "p1") -> list[Any]:
    return ["hello", {"process": name, "app": "shop", "sdk": "1", "draining": False}]


def test_a_process_speaks_frames_over_a_websocket() -> None:
    with (
        client() as http,
        http.websocket_connect(wire.PATH, subprotocols=[wire.SUBPROTOCOL]) as socket,
    ):
        assert socket.accepted_subprotocol == wire.SUBPROTOCOL
        socket.send_text(wire.encode([hello(), ["resumed"]]).decode())
        ((name, welcome),) = wire.decode(socket.receive_text())
        assert name == "welcome"
        assert (welcome["lease"], welcome["heartbeat"], welcome["dev"]) == (30_000, 5_000, True)
        assert welcome["policy"]["max_steps"] == 10_000
        frames = [register("r"), record("r", 2, done("a")), end("r", 3)]
        socket.send_bytes(wire.encode(frames))
        heard: list[Any] = []
        while ["ack", "r", 3] not in heard:
            heard += wire.decode(socket.receive_text())
        beat = http.post(wire.HEARTBEAT_PATH, json={"process": "p1"})
        assert (beat.status_code, beat.json()) == (200, {"lease": 30_000})
        socket.send_text("nonsense")
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
        assert closed.value.code == 1008


def test_a_process_shows_a_key() -> None:
    keys = {"dev": False, "signing_keys": (KEY,), "event_keys": ("events",)}
    with client(**keys) as http:
        for presented in ("", "Bearer wrong", "Basic x"):
            headers = {"authorization": presented} if presented else {}
            assert denied(http, headers).status_code == 401
            beat = http.post(wire.HEARTBEAT_PATH, json={"process": "p"}, headers=headers)
            assert beat.status_code == 401
        shown = {"authorization": f"Bearer {signing.hashed(KEY)}"}
        with http.websocket_connect(
            wire.PATH, subprotocols=[wire.SUBPROTOCOL], headers=shown
        ) as socket:
            socket.send_text(wire.encode([hello()]).decode())
            assert wire.decode(socket.receive_text())[0][0] == "welcome"


def test_web_pages_and_strangers_get_no_connection() -> None:
    with client() as http:
        assert denied(http, {"origin": "https://evil.example"}).status_code == 403
        assert denied(http, {}, subprotocols=["chat"]).status_code == 400
        assert http.get(wire.PATH).json()["code"] == "no_websocket"


def denied(
    http: TestClient, headers: dict[str, str], subprotocols: list[str] | None = None
) -> WebSocketDenialResponse:
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        http.websocket_connect(
            wire.PATH, subprotocols=subprotocols or [wire.SUBPROTOCOL], headers=headers
        ),
    ):
        pass
    return refused.value


LONG = b'{"process":"' + b"x" * 5_000 + b'"}'


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b'{"process":1}', 400),
        (b'{"process":"nobody"}', 404),
        (LONG, 413),
    ],
)
def test_a_heartbeat_says_whose_it_is(body: bytes, status: int) -> None:
    with client() as http:
        answer = http.post(wire.HEARTBEAT_PATH, content=body)
        assert answer.status_code == status
        assert answer.json()["error"]
