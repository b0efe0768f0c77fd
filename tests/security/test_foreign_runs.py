"""Attacks by way of runs of other SDKs: what they name is called back, what they answer is passed
on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from ulid import ULID

from durable_endpoints.protocol.step_ids import hash_name
from durable_endpoints_server.app import create_app
from durable_endpoints_server.inngest.trigger import read_trigger
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.memory import MemoryStore
from tests.security.attacker import KEY, Attacker

ORIGIN = "https://shop.example"


@pytest.fixture
def client() -> Iterator[TestClient]:
    settings = ServerSettings(signing_keys=(KEY,), app_origins=(ORIGIN,))
    app = create_app(Server(settings, MemoryStore()))
    with TestClient(app, headers={"authorization": f"Bearer {KEY}"}) as client:
        yield client


def checkpoint(*steps: dict[str, Any], domain: str = ORIGIN, **data: Any) -> dict[str, Any]:
    given = {"domain": domain, "method": "POST", "path": "/report", "query_params": "", "body": ""}
    event = {"name": "inngest/http.request", "data": {**given, **data}}
    return {
        "run_id": str(ULID()),
        "event": event,
        "steps": list(steps),
        "retries": 3,
        "request_version": 2,
    }


def step(name: str) -> dict[str, Any]:
    return {"op": "StepRun", "id": hash_name(name), "name": name, "data": 1}


def sleep() -> dict[str, Any]:
    return {"op": "Sleep", "id": hash_name("nap"), "name": "1h", "opts": {}}


def complete(**headers: str) -> dict[str, Any]:
    result = {"status": 200, "headers": headers, "body": "done", "version": 2}
    return {"op": "RunComplete", "id": hash_name("complete"), "data": result}


@pytest.mark.parametrize(
    "domain",
    [
        "https://evil.example",
        "http://169.254.169.254",
        "http://127.0.0.1:8288",
        "http://localhost",
        "http://shop.example",
        "https://shop.example:8443",
        "https://shop.example.evil.example",
        "https://shop.example@evil.example",
        "https://evil.example#.shop.example",
        "file:///etc/passwd",
        "gopher://shop.example",
    ],
)
def test_only_an_origin_that_the_operator_named_is_called_back(
    client: TestClient, domain: str
) -> None:
    """Whoever controls the `Host` of a request would else choose where its re-entry goes."""
    answer = client.post("/v1/checkpoint", json=checkpoint(sleep(), domain=domain))
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["status"] == answer.status_code


@pytest.mark.parametrize(
    "data",
    [
        {"path": "@evil.example/"},
        {"path": "//evil.example/"},
        {"path": "https://evil.example/"},
        {"path": "/x\r\nhost: evil.example"},
        {"path": "/x HTTP/1.1"},
        {"query_params": "a\r\nhost: evil.example"},
        {"method": "GET / HTTP/1.1\r\nhost: evil.example\r\n\r\n"},
        {"method": "CONNECT"},
        {"method": ""},
        {"content_type": "text/plain\r\nx-run-id: 1"},
        {"path": 5},
        {"body": {"a": 1}},
    ],
)
def test_what_a_request_says_of_itself_does_not_leave_its_place(
    client: TestClient, data: dict[str, Any]
) -> None:
    new = checkpoint(sleep(), **data)
    answer = client.post("/v1/checkpoint", json=new)
    if answer.status_code != 200:
        assert answer.status_code in (400, 422), answer.text
        return
    trigger = read_trigger(new["event"], new["run_id"], "")
    for part in (trigger.target, trigger.method, trigger.content_type):
        assert part.isascii()
        assert part.isprintable()
        assert " " not in part
    url = httpx.URL(trigger.origin).copy_with(raw_path=trigger.target.encode())  # as it is called
    assert (url.scheme, url.host, url.userinfo) == ("https", "shop.example", b"")


@pytest.mark.parametrize(
    "headers",
    [
        {"x-a": "b\r\nset-cookie: stolen=1"},
        {"x-a\r\nset-cookie": "stolen=1"},
        {"x-a": "b\nset-cookie: stolen=1"},
        {"x a": "b"},
        {"content-length": "3"},
        {"transfer-encoding": "chunked"},
        {"connection": "upgrade"},
    ],
    ids=range(7),
)
def test_what_an_application_answered_splits_no_answer(
    attacker: Attacker, headers: dict[str, str]
) -> None:
    """Response splitting: header values travel through the server to other clients."""
    new = checkpoint(step("a"), complete(**headers))
    begun = attacker.ask("POST", "/v1/checkpoint", json.dumps(new).encode(), KEY)
    if begun.status != 200:
        assert begun.status == 400, begun
        return
    token = begun.json()["data"]["token"]
    answer = attacker.ask("GET", f"/v1/checkpoint/{new['run_id']}/output?token={token}")
    assert answer.status in (200, 500), answer
    assert "set-cookie" not in answer.headers
    if answer.status == 200:
        assert (answer.headers["content-length"], answer.body) == ("4", b"done")
        assert "transfer-encoding" not in answer.headers


def test_a_token_opens_no_other_run(client: TestClient) -> None:
    mine, other = checkpoint(step("a"), complete()), checkpoint(step("a"), complete())
    token = client.post("/v1/checkpoint", json=mine).json()["data"]["token"]
    realtime = client.post("/v1/checkpoint", json=other).json()["data"]["realtime_token"]
    output = "/v1/checkpoint/{}/output?token={}"
    own = client.get(output.format(mine["run_id"], token), headers={"authorization": ""})
    assert own.text == "done"
    for run, shown in ((other, token), (other, realtime), (mine, ""), (mine, KEY)):
        assert client.get(output.format(run["run_id"], shown)).status_code == 401


def test_steps_have_a_number_and_a_size(client: TestClient) -> None:
    new = checkpoint(*[step(f"s{n}") for n in range(10_001)])
    many = client.post("/v1/checkpoint", json=new)
    assert (many.status_code, many.json()["status"]) in ((400, 400), (413, 413))
    large = {**step("large"), "data": "x" * (4 * 1024 * 1024 + 1)}
    big = client.post("/v1/checkpoint", json=checkpoint(large))
    assert (big.status_code, big.json()["status"]) in ((400, 400), (413, 413))
