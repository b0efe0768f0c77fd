"""Checkpoints of a request that an application serves: recorded once, refused when they must be."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from typing import Any

import orjson
import pytest

from durable_endpoints.protocol.step_ids import hash_name
from durable_endpoints.testing import VirtualClock
from durable_endpoints_server.engine.model import Status
from tests.durable_endpoints_server.helpers import FlakyStore, anything
from tests.durable_endpoints_server.inngest.sdk import (
    COMPLETE,
    SDK_HEADERS,
    complete,
    op,
    sleep,
    step_error,
    step_run,
    world,
)

pytestmark = pytest.mark.anyio


async def test_a_request_that_needs_no_server_is_recorded_step_by_step(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:
        begun = (await w.begin(step_run("a", {"x": 1}))).json()["data"]
        assert begun.keys() == {"run_id", "app_id", "fn_id", "token", "realtime_token"}
        assert await w.status() is Status.RUNNING
        assert (await w.steps(step_run("b", None))).content == b""
        assert await w.actions() == {
            hash_name("a"): {"data": {"x": 1}},
            hash_name("b"): {"data": None},
        }
        assert (await w.steps(complete('"done"', 202, **{"X-Own": "yes"}))).status_code == 200
        answer = await w.output()
        assert (answer.status_code, answer.text, answer.headers["x-own"]) == (202, '"done"', "yes")
        assert answer.headers["access-control-allow-origin"] == "*"
        assert w.app.requests == []


async def test_every_checkpoint_may_be_repeated_for_ever(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:
        first = (await w.begin(step_run("a", 1))).json()["data"]
        for _ in range(2):
            again = await w.begin(step_run("a", "another"))
            assert again.json()["data"] == first
        assert (await w.steps(step_run("a", "another"))).status_code == 200
        assert (await w.steps(complete("null"))).status_code == 200
        assert (await w.steps(complete("null"))).status_code == 200
        assert (await w.begin(step_run("a", 1), complete("null"))).json()["data"] == first
        assert await w.actions() == {hash_name("a"): {"data": 1}}


async def test_repeats_that_come_together_are_one(store: FlakyStore, clock: VirtualClock) -> None:
    async with world(store, clock) as w:
        answers = await asyncio.gather(*(w.begin(step_run("a", n)) for n in range(5)))
        assert {answer.status_code for answer in answers} == {200}
        run = w.server.host.live[w.run_id].run
        assert (run.steps, run.last_order) == (1, 1)


async def test_a_run_that_is_not_the_requests_any_more_takes_repeats_only(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:
        await w.begin(step_run("a", 1))
        assert (await w.steps(sleep("nap", "1h"))).status_code == 200
        assert await w.status() is Status.WAITING
        assert (await w.steps(sleep("nap", "1h"))).status_code == 200
        late = await w.steps(step_run("b", 2))
        assert (late.status_code, late.json()["code"]) == (409, "moved_on")
        await w.server.host.cancel(w.run_id, "")
        assert (await w.steps(step_run("c", 3))).json()["data"]["status"] == "cancelled"


async def test_errors_are_errors(store: FlakyStore, clock: VirtualClock) -> None:
    async with world(store, clock) as w:
        assert (await w.steps(step_run("a", 1))).status_code == 404
        large = await w.begin(step_run("a", "x" * 5_000_000))
        assert (large.status_code, large.json()["code"]) == (413, "too_large")
        other = await w.begin(event=w.event(path="/other"))
        assert (other.status_code, other.json()["code"]) == (409, "run_exists")
        url = f"/v1/http/runs/{w.run_id}/steps"
        assert (await w.client.post("/v1/checkpoint/nonsense/steps", json={})).status_code == 400
        deep = b'{"steps":' + b"[" * 900 + b"]" * 900 + b"}"
        for body in (
            deep,
            b'{"steps":[{"op":"StepRun","id":"a","data":1e999}]}',
            b"",
            b"{",
            b"[]",
            b'{"steps": 1}',
            b'{"steps": [1]}',
            b'{"steps": [{"op": 1}]}',
        ):
            answer = await w.client.post(url, content=body)
            assert answer.status_code == 400, body
            assert answer.json().keys() >= {"error", "data", "status"}


@pytest.mark.parametrize(
    "change",
    [
        {"domain": "http://u:p@localhost:3000"},
        {"domain": "ftp://localhost"},
        {"domain": "http://localhost:3000/x"},
        {"domain": "http://local host"},
        {"domain": None},
        {"method": "GET\r\n"},
        {"path": "x"},
        {"body": 7},
    ],
)
async def test_a_trigger_that_cannot_be_sent_in_again_is_refused(
    store: FlakyStore, clock: VirtualClock, change: dict[str, Any]
) -> None:
    async with world(store, clock) as w:
        assert (await w.begin(event=w.event(**change))).status_code == 400


async def test_an_origin_that_nobody_trusts_is_not_called_back(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:
        evil = w.event(domain="http://evil.example")
        refused = await w.begin(step_run("a", 1), event=evil)
        assert (refused.status_code, refused.json()["code"]) == (403, "origin_not_trusted")
        assert "--app-origin http://evil.example" in refused.json()["error"]
        # What ends at once is never called back.
        assert (await w.begin(complete("1"), event=evil)).status_code == 200


async def test_an_origin_that_was_registered_with_a_key_is_called_back(
    store: FlakyStore, clock: VirtualClock
) -> None:
    keys = {"authorization": "Bearer signkey-test-abcd"}
    async with world(store, clock, dev=False, signing_keys=("abcd",)) as w:
        w.client.headers.update(keys)
        assert (await w.begin(step_run("a", 1))).status_code == 403
        w.client.headers["authorization"] = "Bearer no"
        named = {"origin": "http://LOCALHOST:3000/"}
        assert (await w.client.put("/v1/durable/apps", json=named)).status_code == 401
        assert (await w.begin(step_run("a", 1))).status_code == 401
        w.client.headers.update(keys)
        assert (await w.client.put("/v1/durable/apps", json={"origin": "x"})).status_code == 400
        assert (await w.client.put("/v1/durable/apps", json=named)).status_code == 200
        assert (await w.begin(step_run("a", 1))).status_code == 200
    async with world(store, clock, dev=False, signing_keys=("abcd",)) as w:
        w.client.headers.update(keys)
        assert (await w.client.get("/v1/durable/apps")).json()["data"] == {
            "origins": ["http://localhost:3000"]
        }
        assert (await w.begin(step_run("a", 1))).status_code == 200


async def test_an_idempotency_key_is_one_run_of_its_endpoint(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:
        first = (await w.begin(step_run("a", 1), idempotency="k")).json()["data"]
        first_id, w.run_id = w.run_id, "01ARZ3NDEKTSV4RRFFQ69G5FAV"
        again = await w.begin(step_run("a", 1), idempotency="k")
        assert (again.status_code, again.json()["code"]) == (409, "run_exists")
        assert again.json()["data"] == first | {"run_id": first_id}
        other = await w.begin(event=w.event(fn="other"), idempotency="k")
        assert other.status_code == 200


async def test_a_run_is_found_again_after_silence_and_after_a_restart(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:
        await w.begin(step_run("a", 1))
        clock.move_to(clock.now() + 60_000)
        assert w.server.host.live == {}
        assert (await w.steps(step_run("b", 2))).status_code == 200
        run_id = w.run_id
    async with world(store, clock) as w:
        w.run_id = run_id
        assert await w.status() is Status.RUNNING
        assert await store.stream(run_id) is None  # a new start of the server is none of a machine
        assert (await w.steps(step_run("b", "no"), step_run("c", 3))).status_code == 200
        assert list(map(orjson.dumps, (await w.actions()).values())) == [
            b'{"data":1}',
            b'{"data":2}',
            b'{"data":3}',
        ]
        assert (await w.steps(complete("3"))).status_code == 200


async def test_a_store_that_fails_is_told_and_nothing_is_lost(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:
        await w.begin(step_run("a", 1))
        store.fails = anything
        assert (await w.steps(step_run("b", 2))).status_code == 503
        store.fails = None
        assert (await w.steps(step_run("b", 2))).status_code == 200
        assert await w.actions() == {hash_name("a"): {"data": 1}, hash_name("b"): {"data": 2}}


async def test_a_run_that_nobody_speaks_of_any_more_ends_as_abandoned(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock, abandon_after=3_600_000) as w:
        await w.begin(step_run("a", 1))
        clock.move_to(clock.now() + 3_000_000)
        await w.steps(step_run("b", 1))
        clock.move_to(clock.now() + 3_000_000)
        await asyncio.sleep(0.01)
        assert await w.status() is Status.RUNNING
        clock.move_to(clock.now() + 3_000_000)
        await asyncio.sleep(0.01)
        assert await w.status() is Status.FAILED
        answer = await w.output()
        assert (answer.status_code, answer.json()["reason"]) == (500, "abandoned")


async def test_the_last_failure_of_the_handler_is_the_end(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:
        await w.begin(step_run("a", 1))
        assert (await w.steps(step_error("complete", "no way", "StepFailed"))).status_code == 200
        answer = await w.output()
        assert answer.status_code == 500
        assert answer.json()["error"] == {"name": "Error", "message": "no way"}
        assert "secret" not in answer.text
        assert (await w.steps(step_error("complete", "no way", "StepFailed"))).status_code == 200


@pytest.mark.parametrize(
    ("body", "sdk", "seen"),
    [
        ("plain text", "inngest-js:v4", b"plain text"),
        ("abcd", "inngest-js:v4", b"abcd"),
        (b64encode(b"\x00\xff").decode(), "inngest-go:v1", b"\x00\xff"),
        ("not base64!", "inngest-go:v1", b"not base64!"),
    ],
)
async def test_a_body_comes_as_text_or_as_base64(
    store: FlakyStore, clock: VirtualClock, body: str, sdk: str, seen: bytes
) -> None:
    async with world(store, clock) as w:
        w.client.headers["x-inngest-sdk"] = sdk
        form = {"run_id": w.run_id, "event": w.event(method="POST", body=body)}
        form["steps"] = [op("DiscoveryRequest", "go")]
        assert (await w.client.post("/v1/http/runs", json=form)).status_code == 200
        assert await w.settle() is Status.COMPLETED
        request = w.app.requests[0]
        assert request.content == seen
        assert str(request.url) == "http://localhost:3000/api/x?a=1&b=%20"
        assert (request.method, request.headers["x-run-id"]) == ("POST", w.run_id)
        batch = (await w.client.get(f"/v0/runs/{w.run_id}/batch")).json()
        assert batch[0]["data"]["body"] == body


async def test_text_that_is_cut_in_the_middle_of_a_character_is_not_lost(
    store: FlakyStore, clock: VirtualClock
) -> None:
    """JavaScript's JSON has it, and every string function there makes it."""
    async with world(store, clock) as w:
        await w.begin()
        form = b'{"steps":[{"op":"StepRun","id":"%s","data":["\\ud83d",{"n":%d}]}]}'
        url = f"/v1/checkpoint/{w.run_id}/steps"
        body = form % (hash_name("a").encode(), 2**70)
        assert (await w.client.post(url, content=body)).status_code == 200
        raw = (await w.client.get(f"/v0/runs/{w.run_id}/actions")).content
        assert b'"\\ud83d"' in raw
        assert (await w.steps(complete("1"))).status_code == 200


@pytest.mark.parametrize("name", ["path", "query_params", "fn", "content_type", "body"])
async def test_half_a_character_in_a_request_does_not_stop_its_run(
    name: str, store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:
        form = {
            "run_id": w.run_id,
            "event": w.event(**{name: "/\ud83d"}),
            "steps": [sleep("z", "1s")],
        }
        begun = await w.client.post("/v1/checkpoint", content=json.dumps(form), headers=SDK_HEADERS)
        assert begun.status_code == 200
        assert await w.pass_time(1) is Status.COMPLETED


async def test_half_a_character_in_an_error_can_be_told(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:
        failed = {
            "id": COMPLETE,
            "op": "StepFailed",
            "error": {"name": "E", "message": "no \ud83d"},
        }
        form = {"run_id": w.run_id, "event": w.event(), "steps": [failed]}
        await w.client.post("/v1/checkpoint", content=json.dumps(form), headers=SDK_HEADERS)
        assert (await w.output()).json()["error"] == {"name": "E", "message": "no ?"}
