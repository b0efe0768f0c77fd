"""Whether the server lives, and whether it can work."""

from __future__ import annotations

from starlette.testclient import TestClient

from durable_endpoints_server.app import create_app
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.memory import MemoryStore


def test_a_server_is_well_and_ready_and_refuses_what_it_does_not_know() -> None:
    app = create_app(Server(ServerSettings(dev=True), MemoryStore()))
    with TestClient(app) as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").json() == {"status": "ready"}
        unknown = client.get("/nothing")
    assert unknown.status_code == 404
    assert unknown.json() == {"error": "Not Found", "data": None, "status": 404}
