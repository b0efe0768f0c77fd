"""Attacks on keys and tokens."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from durable_endpoints.protocol import signing
from durable_endpoints_server.app import create_app
from durable_endpoints_server.auth import Keys
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.memory import MemoryStore
from tests.security.attacker import EVENT_KEY, KEY, OLD_KEY

OPEN = {"/health", "/ready", "/openapi.json"}
"""What needs nothing."""
SETTINGS = ServerSettings(signing_keys=(KEY, OLD_KEY), event_keys=(EVENT_KEY,))
ROUTES = create_app(Server(SETTINGS, MemoryStore())).routes
RUN, OTHER_RUN = "01K3ZQJ6YV8M4N5P6Q7R8S9T0A", "01K3ZQJ6YV8M4N5P6Q7R8S9T0B"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(Server(SETTINGS, MemoryStore()))) as client:
        yield client


def path_of(route: Any) -> str:
    named = dict.fromkeys(route.param_convertors, RUN)
    path: str = route.path
    for name, value in named.items():
        path = path.replace(f"{{{name}}}", value)
    return path


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (method, path_of(route))
        for route in ROUTES
        if isinstance(route, Route) and route.path not in OPEN
        for method in sorted((route.methods or set()) - {"OPTIONS"})
    ],
)
@pytest.mark.parametrize("key", ["", "wrong"])
def test_no_route_works_without_a_key_or_a_token(
    client: TestClient, method: str, path: str, key: str
) -> None:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    answer = client.request(method, path, headers=headers, content=b"{}")
    assert answer.status_code in (401, 404), (method, path)
    if answer.status_code == 404:  # what only a development server has
        assert path in ("/dev", "/v0/gql"), path


@pytest.mark.parametrize("path", [path_of(r) for r in ROUTES if isinstance(r, WebSocketRoute)])
@pytest.mark.parametrize("key", ["", "wrong"])
def test_no_socket_opens_without_a_key_or_a_token(client: TestClient, path: str, key: str) -> None:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with pytest.raises(Exception) as caught, client.websocket_connect(path, headers=headers):
        pass
    denied = getattr(caught.value, "status_code", None)
    assert denied == 401 or isinstance(caught.value, WebSocketDisconnect), caught.value


@pytest.mark.parametrize(
    "presented",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {KEY}",
        KEY,
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY}0",
        f"Bearer {KEY.upper()}",
        f"Bearer {KEY} {KEY}",
        f"Bearer {signing.hashed(KEY)[:-1]}",
        f"Bearer {signing.hashed(signing.hashed(KEY))}",
        f"Bearer {EVENT_KEY}",
        "Bearer signkey-prod-",
        "Bearer \x80\xff",
    ],
)
def test_what_is_nearly_a_key_is_none(client: TestClient, presented: str) -> None:
    headers = [(b"authorization", presented.encode("latin-1"))]
    answer = client.get("/v1/durable/runs", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert "www-authenticate" in answer.headers


@pytest.mark.parametrize("key", [KEY, OLD_KEY, KEY.removeprefix("signkey-prod-")])
def test_a_key_may_come_as_it_is_or_hashed(client: TestClient, key: str) -> None:
    for presented in (key, signing.hashed(key)):
        headers = {"authorization": f"Bearer {presented}"}
        assert client.get("/v1/durable/runs", headers=headers).status_code == 200


def test_an_event_key_sends_events_and_nothing_else(client: TestClient) -> None:
    assert client.post(f"/e/{EVENT_KEY}", json={"name": "paid"}).status_code == 200
    assert client.post(f"/e/{KEY}", json={"name": "paid"}).status_code == 401
    assert client.post(f"/e/{EVENT_KEY[:-1]}", json={"name": "paid"}).status_code == 401
    headers = {"authorization": f"Bearer {EVENT_KEY}"}
    assert client.get("/v1/events", headers=headers).status_code == 401


def test_a_token_opens_one_thing_of_one_run() -> None:
    keys = Keys(SETTINGS)
    token = keys.sign_run("output", RUN)
    assert keys.opens_run("output", RUN, token)
    assert not keys.opens_run("output", OTHER_RUN, token)
    assert not keys.opens_run("realtime", RUN, token)
    for forged in ("", token[:-1], token + "A", token.swapcase(), "é" * 43, RUN):
        assert not keys.opens_run("output", RUN, forged)


def test_a_token_is_no_hash_of_what_is_known() -> None:
    token = Keys(SETTINGS).sign_run("output", RUN)
    others = ServerSettings(signing_keys=("another key of some length",))
    assert token != Keys(others).sign_run("output", RUN)
    assert sha256(RUN.encode()).hexdigest() not in token


def test_rotation_keeps_old_tokens_until_their_key_is_dropped() -> None:
    made_before = Keys(ServerSettings(signing_keys=(OLD_KEY,))).sign_run("output", RUN)
    during = Keys(ServerSettings(signing_keys=(KEY, OLD_KEY)))
    assert during.opens_run("output", RUN, made_before)
    assert during.sign_run("output", RUN) != made_before
    after = Keys(ServerSettings(signing_keys=(KEY,)))
    assert not after.opens_run("output", RUN, made_before)
    assert after.opens_run("output", RUN, during.sign_run("output", RUN))


@pytest.mark.parametrize("presented", ["", "w", KEY[:-1] + "0", KEY, OLD_KEY, "x" * 5_000])
def test_a_nearly_right_key_takes_as_long_as_any(
    monkeypatch: pytest.MonkeyPatch, presented: str
) -> None:
    """Each comparison is one in constant time, and their number does not depend on the key."""
    compared: list[Any] = []
    genuine = hmac.compare_digest

    def compare(a: Any, b: Any) -> bool:
        compared.append(a)
        return genuine(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    signing.is_key(presented, (KEY, OLD_KEY))
    assert len(compared) == 4  # two keys, in two forms


def test_a_signature_is_for_one_request_and_a_short_time() -> None:
    """A re-entry that was overheard can neither be altered nor repeated later."""
    path, body, now = "/report?x=1", b'{"a":1}', 1_800_000_000
    signed = signing.sign_request(KEY, "POST", path, RUN, body, now)

    def holds(
        method: str = "POST", path: str = path, run: str = RUN, body: bytes = body, at: int = now
    ) -> bool:
        return signing.verify_request((KEY,), signed, method, path, run, body, at)

    assert holds()
    assert holds(at=now + signing.TOLERANCE)
    assert not holds(method="PUT")
    assert not holds(path="/report?x=2")
    assert not holds(run=OTHER_RUN)
    assert not holds(body=b'{"a":2}')
    assert not holds(at=now + signing.TOLERANCE + 1)
    assert not holds(at=now - signing.TOLERANCE - 1)
    assert not signing.verify_request((OLD_KEY,), signed, "POST", path, RUN, body, now)


@pytest.mark.parametrize(
    "signature", ["", "t=&s=", "t=1", "s=ff", "t=-1&s=ff", "t=9e9&s=ff", "&" * 99, "t=١&s=ff"]
)
def test_junk_is_no_signature(signature: str) -> None:
    assert not signing.verify((KEY,), signature, b"{}", 1)
    assert not signing.verify_request((KEY,), signature, "GET", "/", RUN, b"{}", 1)
