"""Events come in at `/e/{key}`, one or many, and are told of at `/v1/events`."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from starlette.testclient import TestClient
from ulid import ULID

from durable_endpoints.ids import new_run_id
from durable_endpoints_server.app import create_app
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.base import Ticket
from durable_endpoints_server.store.memory import MemoryStore

SEED = {"x-inngest-event-id-seed": "1700000000000," + b64encode(b"\x01" * 6 + b"\xff" * 4).decode()}


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(create_app(Server(ServerSettings(dev=True), MemoryStore()))) as client:
        yield client


def receive(client: TestClient, events: Any, **headers: str) -> list[str]:
    answer = client.post("/e/key", json=events, headers=headers)
    assert answer.status_code == 200, answer.text
    form = answer.json()
    assert form["status"] == 200
    ids: list[str] = form["ids"]
    return ids


def refused(client: TestClient, content: bytes | Any, **headers: str) -> str:
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    answer = client.post("/e/key", content=body, headers=headers)
    form = answer.json()
    assert answer.status_code == form["status"] == 400
    return str(form["error"])


def test_an_event_is_received_and_told_of(client: TestClient) -> None:
    (event_id,) = receive(client, {"name": "order/paid", "data": {"n": 1}, "user": {"id": "u"}})
    told = client.get(f"/v1/events/{event_id}").json()["data"]
    assert told["name"] == "order/paid"
    assert (told["data"], told["user"], told["v"]) == ({"n": 1}, {"id": "u"}, None)
    assert told["internal_id"] == told["id"] == event_id
    assert client.get(f"/v1/events/{event_id}/runs").json()["data"] == []


def test_an_id_of_the_sender_counts_once_and_keeps_the_first_event(client: TestClient) -> None:
    (first,) = receive(client, {"name": "e", "id": "mine", "data": {"n": 1}})
    assert (
        receive(client, [{"name": "e", "id": "mine", "data": {"n": 2}}, {"name": "f"}])[0] == first
    )
    told = client.get(f"/v1/events/{first}").json()["data"]
    assert (told["id"], told["internal_id"], told["data"]) == ("mine", first, {"n": 1})
    assert len(client.get("/v1/events").json()["data"]) == 2


def test_a_seed_makes_the_ids_so_that_a_repeat_changes_nothing(client: TestClient) -> None:
    batch = [{"name": "e"}, {"name": "e", "id": "mine"}]
    ids = receive(client, batch, **SEED)
    assert receive(client, batch, **SEED) == ids
    # The entropy's last four bytes count up, and around.
    entropy = [ULID.from_str(event_id).bytes[6:] for event_id in ids]
    assert entropy == [b"\x01" * 6 + bytes(4), b"\x01" * 6 + bytes(3) + b"\x01"]
    assert len(client.get("/v1/events").json()["data"]) == 2


def test_a_batch_is_one_write() -> None:
    class CountingStore(MemoryStore):
        writes = 0

        def submit(self, *change: Any) -> Ticket:
            self.writes += 1
            return super().submit(*change)

    store = CountingStore()
    with TestClient(create_app(Server(ServerSettings(dev=True), store))) as client:
        before = store.writes
        assert len(set(receive(client, [{"name": "e"}] * 5_000))) == 5_000
        client.get("/health")
    assert store.writes - before <= 2  # that they came, and that nobody waited for them


def test_events_come_as_forms_and_as_what_curl_calls_a_form(client: TestClient) -> None:
    form = "application/x-www-form-urlencoded"
    body = b"name=e&id=mine&ts=5&size=large&data=%7B%22n%22%3A1%7D"
    headers = {"content-type": form}
    assert client.post("/e/k", content=body, headers=headers).status_code == 200
    told = client.get("/v1/events/mine").json()["data"]
    assert (told["name"], told["ts"], told["data"]) == ("e", 5, {"size": "large", "n": 1})
    assert client.post("/e/k", content=b' {"name": "e"}', headers=headers).status_code == 200


def test_what_is_internal_is_not_taken_from_outside(client: TestClient) -> None:
    assert "reserved" in refused(client, {"name": "inngest/function.finished"})
    (event_id,) = receive(client, {"name": "e", "data": {"_inngest": {"x": 1}, "y": 2}})
    assert client.get(f"/v1/events/{event_id}").json()["data"]["data"] == {"y": 2}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b'{"name": "e"', "not JSON"),
        (b'"e"', "JSON object"),
        ([{"name": "e"}, 7], "event 2 of 2"),
        ({"data": {}}, "needs a `name`"),
        ({"name": "x" * 513}, "1 to 512"),
        ({"name": 7}, "printable text"),
        ({"name": "signal:x"}, "kept for signals"),
        ({"name": "e", "data": [1]}, "`data` is a JSON object"),
        ({"name": "e", "ts": "now"}, "epoch milliseconds"),
        ({"name": "e", "id": 7}, "event id"),
        ({"name": "e", "v": 7}, "v=7"),
        ({"name": "e", "data": {"x": "x" * 3_145_728}}, "3,145,728 are allowed"),
        (b'{"name":"e","data":' + b'{"a":' * 300 + b"1" + b"}" * 301, "cannot be kept"),
        ([{"name": "e"}] * 5_001, "5,000 are allowed"),
    ],
)
def test_a_request_with_a_bad_event_is_refused_whole(
    client: TestClient, body: Any, reason: str
) -> None:
    assert reason in refused(client, body)
    assert client.get("/v1/events").json()["data"] == []


def test_a_bad_seed_is_refused(client: TestClient) -> None:
    assert "event-id-seed" in refused(client, {"name": "e"}, **{"x-inngest-event-id-seed": "5,x"})


def test_too_much_is_refused_before_it_is_read(client: TestClient) -> None:
    answer = client.post("/e/k", content=b"[", headers={"content-length": "99999999"})
    assert answer.status_code == 413


def test_events_are_listed_by_name_and_time_and_page_by_page(client: TestClient) -> None:
    ids = receive(client, [{"name": "ab"[n % 2]} for n in range(5)])
    assert [event["name"] for event in client.get("/v1/events?name=b").json()["data"]] == ["b", "b"]
    first = client.get("/v1/events?limit=2").json()["data"]
    rest = client.get("/v1/events", params={"cursor": first[-1]["internal_id"]}).json()["data"]
    assert sorted(event["id"] for event in first + rest) == sorted(ids)
    at = first[0]["received_at"]
    assert client.get("/v1/events", params={"received_after": at}).json()["data"] == []
    assert client.get("/v1/events", params={"received_before": at}).json()["data"] == []
    for query in ("limit=0", "limit=x", "cursor=no", "received_after=soon"):
        assert client.get(f"/v1/events?{query}").status_code == 400


def test_keys_are_asked_for_and_unknown_events_are_not_found() -> None:
    keys = ServerSettings(signing_keys=("signkey-prod-ab12",), event_keys=("right",))
    with TestClient(create_app(Server(keys, MemoryStore()))) as client:
        assert client.post("/e/wrong", json={"name": "e"}).status_code == 401
        assert client.post("/e/right", json={"name": "e"}).status_code == 200
        assert client.get("/v1/events").status_code == 401
        bearer = {"Authorization": "Bearer signkey-prod-ab12"}
        assert len(client.get("/v1/events", headers=bearer).json()["data"]) == 1
        unknown = client.get("/v1/events/x", headers=bearer)
    assert (unknown.status_code, unknown.json()["data"]) == (404, None)


def test_a_page_of_any_origin_may_send_events(client: TestClient) -> None:
    preflight = client.options("/e/k", headers={"Access-Control-Request-Headers": "x-a"})
    assert preflight.headers["access-control-allow-headers"] == "x-a"
    answer = client.post("/e/k", json={"name": "e"}, headers={"Origin": "https://a.example"})
    assert answer.headers["access-control-allow-origin"] == "*"


def test_the_request_that_began_a_run_is_an_event_too(client: TestClient) -> None:
    run_id = new_run_id()
    request = {"domain": "http://localhost:3000", "method": "GET", "path": "/x"}
    event = {"name": "inngest/http.request", "data": request}
    begun = client.post("/v1/checkpoint", json={"run_id": run_id, "event": event}).json()["data"]
    told = client.get(f"/v1/events/{run_id}").json()["data"]
    assert (told["id"], told["name"], told["data"]) == (run_id, event["name"], request)
    (run,) = client.get(f"/v1/events/{run_id}/runs").json()["data"]
    assert (run["run_id"], run["function_id"]) == (run_id, begun["fn_id"])
