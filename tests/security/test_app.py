"""Attacks on the application around the engine: names, origins, documents, failures, logs."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from durable_endpoints.protocol.errors import StorageError
from durable_endpoints_server.app import create_app
from durable_endpoints_server.guard import OwnMachine
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.memory import MemoryStore
from tests.security.attacker import EVENT_KEY, KEY

AUTHORISED = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def production() -> tuple[Starlette, Server]:
    settings = ServerSettings(signing_keys=(KEY,), event_keys=(EVENT_KEY,), access_log=True)
    server = Server(settings, MemoryStore())
    return create_app(server), server


@pytest.fixture
def client(production: tuple[Starlette, Server]) -> TestClient:
    return TestClient(production[0], raise_server_exceptions=False)


@pytest.fixture
def development() -> Iterator[TestClient]:
    app = OwnMachine(create_app(Server(ServerSettings(dev=True), MemoryStore())))
    with TestClient(app, base_url="http://localhost:8288") as client:
        yield client


# A server for development: no keys, but a browser on the same machine


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "10.0.0.1", "[::2]", "", "[", "127.0.0.1@x"]
)
def test_development_answers_to_its_own_names_only(development: TestClient, host: str) -> None:
    """DNS rebinding: a page of evil.example whose name suddenly means 127.0.0.1."""
    answer = development.get("/v1/durable/runs", headers={"host": host})
    assert (answer.status_code, answer.json()["code"]) == (403, "host")


@pytest.mark.parametrize("host", ["localhost", "localhost:8288", "127.0.0.1:1", "[::1]:8288"])
def test_development_knows_its_names(development: TestClient, host: str) -> None:
    assert development.get("/v1/durable/runs", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.io"])
def test_a_web_page_of_another_origin_does_nothing_in_development(
    development: TestClient, origin: str
) -> None:
    """A page may send such a form without asking: no CORS holds it back."""
    headers = {"origin": origin, "content-type": "text/plain"}
    answer = development.post("/e/x", content=b'{"name": "paid"}', headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "origin")
    own = {**headers, "origin": "http://localhost:3000"}
    assert development.post("/e/x", content=b'{"name": "paid"}', headers=own).status_code == 200


def test_a_web_page_of_another_origin_opens_no_socket_in_development(
    development: TestClient,
) -> None:
    with (
        pytest.raises(Exception) as caught,
        development.websocket_connect(
            "/v1/durable/connect", headers={"origin": "https://evil.example"}
        ),
    ):
        pass
    assert getattr(caught.value, "status_code", None) == 403


# Documents


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"name": "x", "data": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b'{"name": "x", "ts": 1e999}',
        b'{"name": "x", "ts": ' + b"9" * 100_000 + b"}",
        b'{"name": "x", "data": NaN}',
        b'{"name": "x", "data": "\xff\xfe"}',
        b'{"name": "x", "data": "\\ud800"}',
        b'{"name": "\\u0000"}',
        b'{"name": {"$gt": ""}}',
        b"\x00" * 1_000,
        b"",
        b"null",
        b"5",
        b'"' + b"x" * 1_000_000,
    ],
    ids=range(16),
)
def test_a_hostile_document_is_a_bad_request(client: TestClient, body: bytes) -> None:
    answer = client.post(f"/e/{EVENT_KEY}", content=body)
    assert (answer.status_code, answer.json()["status"]) == (400, 400)
    assert answer.elapsed.total_seconds() < 2


def test_a_flood_of_events_has_an_end(client: TestClient) -> None:
    many = b"[" + b",".join([b'{"name":"x"}'] * 5_001) + b"]"
    assert client.post(f"/e/{EVENT_KEY}", content=many).status_code in (400, 413)
    large = b'{"name":"x","data":"' + b"x" * (3 * 1024 * 1024) + b'"}'
    assert client.post(f"/e/{EVENT_KEY}", content=large).status_code in (400, 413)


# Failures and logs


def test_a_failure_says_nothing_of_its_cause(
    production: tuple[Starlette, Server],
    client: TestClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("at /srv/secret.py")

    monkeypatch.setattr(production[1].host.store, "run", fail)
    monkeypatch.setattr(production[1].host.store, "entry", fail)
    run_id = "01K3ZQJ6YV8M4N5P6Q7R8S9T0A"
    answer = client.get(f"/v1/durable/runs/{run_id}", headers=AUTHORISED)
    assert answer.status_code == 500
    assert answer.json()["status"] == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    (failure,) = [record for record in caplog.records if record.exc_info]
    assert failure.__dict__["run_id"] == run_id


def test_readiness_does_not_tell_where_the_data_is(
    production: tuple[Starlette, Server], client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise StorageError("/var/lib/secret.db: disk full")

    monkeypatch.setattr(production[1].host.store, "next_due", fail)
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert "secret" not in answer.text


def test_a_log_has_neither_tokens_nor_keys(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client.get("/v1/realtime/sse?token=s3cr3t-token")
    client.get("/v1/durable/runs", headers=AUTHORISED)
    client.post(f"/e/{EVENT_KEY}", json={"name": "paid"})
    logged = "".join(f"{record.__dict__}" for record in caplog.records if "http" not in record.name)
    assert "/v1/durable/runs" in logged
    assert "s3cr3t-token" not in logged
    assert KEY not in logged
    assert "/e/…" in logged
    assert EVENT_KEY not in logged
