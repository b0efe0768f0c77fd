"""What an application does is the same on each engine: seen from its clients, over real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from durable_endpoints.client import Transcript, open_stream
from tests.server.conftest import Place

pytestmark = pytest.mark.anyio


async def began(client: httpx.AsyncClient, run: str) -> dict[str, int]:
    found: dict[str, int] = (await client.get(f"/began/{run}")).json()
    return found


async def test_a_run_that_need_not_wait_is_an_ordinary_request(
    client: httpx.AsyncClient, run: str
) -> None:
    response = await client.post(f"/basics/{run}", json={"n": 7})
    assert (response.status_code, response.text) == (201, "7 8")
    assert response.headers["x-run"] == run
    assert await began(client, run) == {"first": 1, "second": 1}


async def test_an_idempotency_key_gives_everybody_the_one_answer(
    client: httpx.AsyncClient, run: str
) -> None:
    headers = {"idempotency-key": run}

    async def ask() -> httpx.Response:
        return await client.post(
            f"/basics/{run}", json={"n": 1}, headers=headers, follow_redirects=True
        )

    answers = await asyncio.gather(*(ask() for _ in range(5)))
    assert {(answer.status_code, answer.text) for answer in answers} == {(201, "1 2")}
    assert await began(client, run) == {"first": 1, "second": 1}
    other = await client.post(f"/basics/{run}", json={"n": 2}, headers=headers)
    assert other.status_code == 422


@pytest.mark.parametrize("path", ["sleeps", "blocking"])
async def test_a_sleep_is_a_redirect_to_the_answer(
    client: httpx.AsyncClient, run: str, path: str
) -> None:
    response = await client.get(f"/{path}/{run}")
    assert response.status_code == 303
    answer = await client.get(response.headers["location"])
    assert answer.json() == ("slept well" if path == "sleeps" else "blocked")
    assert set((await began(client, run)).values()) == {1}


async def test_an_event_ends_a_wait_whether_it_comes_before_or_after_it(
    client: httpx.AsyncClient, run: str
) -> None:
    location = (await client.get(f"/waits/{run}")).headers["location"]
    waiting = asyncio.create_task(client.get(location))
    await client.post("/events/go", json={"run": "another one"})
    await client.post("/events/go", json={"run": run, "n": 1})
    assert (await waiting).json() == {"run": run, "n": 1}


async def test_a_wait_ends_with_its_timeout(client: httpx.AsyncClient, run: str) -> None:
    answer = await client.get(f"/waits/{run}?timeout=50ms", follow_redirects=True)
    assert answer.json() is None


async def test_an_event_from_outside(client: httpx.AsyncClient, run: str, place: Place) -> None:
    if place.server is None:
        pytest.skip("an embedded engine has no address of its own")
    location = (await client.get(f"/waits/{run}")).headers["location"]
    event: dict[str, Any] = {"name": "go", "data": {"run": run}}
    async with httpx.AsyncClient(base_url=place.server.url) as outside:
        sent = await outside.post(f"/e/{place.event_key}", json=event)
        assert sent.status_code == 200
        if place.kind == "serve":
            assert (await outside.post("/e/wrong", json=event)).status_code in (401, 403)
    assert (await client.get(location)).json() == {"run": run}


async def test_a_signal_is_for_the_one_run_that_waits(client: httpx.AsyncClient, run: str) -> None:
    assert (await client.post(f"/signals/{run}", json={})).json() is False
    location = (await client.get(f"/signalled/{run}")).headers["location"]
    assert (await client.post(f"/signals/{run}", json={"n": 1})).json() is True
    assert (await client.post(f"/signals/{run}", json={"n": 2})).json() is False
    assert (await client.get(location)).json() == {"n": 1}


@pytest.mark.parametrize(("failures", "status"), [(2, 200), (3, 502)])
async def test_a_step_that_fails_is_tried_again_as_often_as_it_may(
    client: httpx.AsyncClient, run: str, failures: int, status: int
) -> None:
    answer = await client.get(f"/retries/{run}?failures={failures}", follow_redirects=True)
    assert answer.status_code == status
    assert await began(client, run) == {"work": 3}
    if status == 502:
        assert "ConnectionError: it is away" in answer.json()["detail"]


async def test_a_stream_loses_what_a_failed_try_said_and_nothing_else(
    client: httpx.AsyncClient, run: str
) -> None:
    transcript = Transcript()
    async with open_stream(f"/streams/{run}", client=client) as reading:
        async for message in reading:
            transcript.feed(message)
    assert reading.response.text == "written"
    assert transcript.committed_text == "title: try 2 to the end"


async def test_endpoints_invoke_each_other(client: httpx.AsyncClient, run: str) -> None:
    answer = await client.get(f"/parent/{run}", follow_redirects=True)
    assert answer.json() == [1, 4]
    assert await began(client, run) == {"square 1": 1, "square 2": 1}


async def test_a_run_is_cancelled_by_who_may(client: httpx.AsyncClient, run: str) -> None:
    location = (await client.get(f"/waits/{run}")).headers["location"]
    waiting = asyncio.create_task(client.get(location))
    assert (await client.delete(location)).status_code == 200
    assert (await waiting).status_code == 409
    assert (await client.get(location)).status_code == 409


async def test_only_the_token_of_a_run_opens_it(client: httpx.AsyncClient, run: str) -> None:
    url = httpx.URL((await client.get(f"/waits/{run}")).headers["location"])
    other = httpx.URL((await client.get(f"/waits/{run}x")).headers["location"])
    stolen = url.copy_set_param("token", other.params["token"])
    assert (await client.get(stolen)).status_code == 401
    unknown = url.copy_set_param("runId", "01J00000000000000000000000")
    assert (await client.get(unknown)).status_code in (401, 404)
    assert (await client.get(url.copy_remove_param("token"))).status_code in (400, 401)


async def test_many_at_once(client: httpx.AsyncClient, run: str) -> None:
    answers = await asyncio.gather(
        *(client.get(f"/sleeps/{run}{n}", follow_redirects=True) for n in range(30))
    )
    assert {(answer.status_code, answer.json()) for answer in answers} == {(200, "slept well")}


async def test_a_server_with_keys_opens_to_nobody_without(place: Place) -> None:
    if place.kind != "serve":
        pytest.skip("nobody needs a key here")
    assert place.server is not None
    async with httpx.AsyncClient(base_url=place.server.url) as outside:
        for headers in ({}, {"authorization": "Bearer wrong"}):
            assert (await outside.get("/v1/durable/runs", headers=headers)).status_code == 401
            beat = await outside.post("/v1/durable/heartbeat", json={}, headers=headers)
            assert beat.status_code == 401
