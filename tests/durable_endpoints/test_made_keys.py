"""`idempotency_key`: the endpoint says what names a request, for callers that send no header."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from durable_endpoints import endpoint, step
from durable_endpoints.errors import ConfigurationError
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import assert_same, follow, one, run_id_of, star

pytestmark = pytest.mark.anyio


def counting(**options: Any) -> tuple[Any, list[int]]:
    ran: list[int] = []

    @endpoint(**options)
    async def handler(request: Request) -> Response:
        async def work() -> int:
            ran.append(1)
            return len(ran)

        number = await step.run("work", work)
        if "nap" in request.query_params:
            await step.sleep("nap", "1h")
        return JSONResponse({"number": number, "event": await request.json()})

    return handler, ran


def event_id(request: Request) -> str | None:
    return request.headers.get("webhook-id")


async def id_in_body(request: Request) -> str | None:
    key: str | None = (await request.json()).get("id")
    return key


@pytest.mark.parametrize("make", [event_id, id_in_body, lambda request: id_in_body(request)])
async def test_a_delivery_that_is_repeated_gets_the_first_answer(
    engine: VirtualEngine, make: Any
) -> None:
    handler, ran = counting(idempotency_key=make)
    async with engine.client(one(engine, handler)) as client:
        headers = {"webhook-id": "evt_1"}
        first = await client.post("/", headers=headers, json={"id": "evt_1", "attempt": 1})
        again = await client.post("/", headers=headers, json={"id": "evt_1", "attempt": 2})
        assert_same(again, first)
        assert first.json()["event"]["attempt"] == 1, "the handler can read the body as well"
        other = await client.post("/", headers={"webhook-id": "evt_2"}, json={"id": "evt_2"})
        assert run_id_of(other) != run_id_of(first)
    assert len(ran) == 2


async def test_a_delivery_that_is_repeated_meanwhile_joins(engine: VirtualEngine) -> None:
    def accepted(request: Request, run_id: str, token: str) -> Response:
        return JSONResponse({"run": run_id}, 202)

    handler, ran = counting(idempotency_key=event_id, async_response=accepted)
    app = one(engine, handler, respond_within="50ms")
    async with engine.client(app) as client:
        headers = {"webhook-id": "evt_1"}
        first = await client.post("/?nap", headers=headers, json={})
        again = await client.post("/?nap", headers=headers, json={})
        assert (first.status_code, again.status_code) == (202, 202)
        assert again.json() == first.json()
        await engine.advance("1h")
        assert (await client.post("/?nap", headers=headers, json={})).status_code == 200
    assert ran == [1]


async def test_without_a_key_of_its_own_the_header_counts(engine: VirtualEngine) -> None:
    handler, ran = counting(idempotency_key=event_id)
    async with engine.client(one(engine, handler)) as client:
        headers = {"idempotency-key": "k"}
        first = await client.post("/", headers=headers, json={})
        assert_same(await client.post("/", headers=headers, json={}), first)
        assert (await client.post("/", headers=headers, json={"a": 1})).status_code == 422
        await client.post("/", json={})
        await client.post("/", json={})
    assert len(ran) == 3


async def test_a_header_cannot_take_a_made_key(engine: VirtualEngine) -> None:
    handler, ran = counting(idempotency_key=event_id)
    plain, _ = counting()
    app = star(
        engine,
        Route("/hook", handler, methods=["POST"]),
        Route("/plain", plain, methods=["POST"]),
    )
    async with engine.client(app) as client:
        for taken in ("evt_1", "POST /hook evt_1", "* / evt_1", "POST /hook/evt_1"):
            assert (
                await client.post("/plain", headers={"idempotency-key": taken}, json={})
            ).is_success
        delivery = await client.post("/hook", headers={"webhook-id": "evt_1"}, json={})
        assert delivery.status_code == 200
    assert ran == [1]


async def test_made_keys_belong_to_their_endpoint_and_url(engine: VirtualEngine) -> None:
    first, ran = counting(idempotency_key=event_id)
    second, ran_too = counting(idempotency_key=event_id)
    app = star(
        engine,
        Route("/a/{tenant}", first, methods=["POST"]),
        Route("/b/{tenant}", second, methods=["POST"]),
    )
    async with engine.client(app) as client:
        headers = {"webhook-id": "evt_1"}
        assert (await client.post("/a/1", headers=headers, json={})).status_code == 200
        assert (await client.post("/b/1", headers=headers, json={})).status_code == 200
        other = await client.post("/a/2", headers=headers, json={})
        assert other.status_code == 422, "not the answer of another tenant"
        stranger = {**headers, "authorization": "somebody else"}
        assert (await client.post("/a/1", headers=stranger, json={})).status_code == 422
    assert (ran, ran_too) == ([1], [1])


@pytest.mark.parametrize("bad", ["", "x" * 256, "é", "a\nb", "\ud800"])
async def test_what_cannot_be_a_key_is_refused(engine: VirtualEngine, bad: str) -> None:
    handler, ran = counting(idempotency_key=lambda request: bad)
    async with engine.client(one(engine, handler)) as client:
        response = await client.post("/", json={})
        assert (response.status_code, response.json()["error"]) == (400, "bad_idempotency_key")
        assert "that this endpoint makes" in response.json()["detail"]
    assert ran == []


async def test_the_function_may_refuse_the_request(engine: VirtualEngine) -> None:
    def signed(request: Request) -> str:
        raise HTTPException(401, "no signature")

    handler, ran = counting(idempotency_key=signed)
    async with engine.client(one(engine, handler)) as client:
        response = await client.post("/", json={})
        assert (response.status_code, response.text) == (401, "no signature")
    assert ran == []


async def test_a_reentry_asks_for_no_key(engine: VirtualEngine) -> None:
    asked: list[int] = []

    def once(request: Request) -> str:
        asked.append(1)
        return "evt_1"

    handler, ran = counting(idempotency_key=once)
    async with engine.client(one(engine, handler)) as client:
        first = await client.post("/?nap", json={})
        answer = await follow(engine, client, first.headers["location"], "1h")
        assert answer.json()["number"] == 1
    assert (asked, ran) == ([1], [1])


async def test_anything_but_a_text_is_an_error_that_says_so(engine: VirtualEngine) -> None:
    handler, _ = counting(idempotency_key=lambda request: 7)
    app = one(engine, handler)
    async with (
        engine.client(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://raises") as client,
    ):
        with pytest.raises(ConfigurationError, match="gave 7: give a text, or None"):
            await client.post("/", json={})
    with pytest.raises(ConfigurationError, match="give a callable"):
        endpoint(idempotency_key="webhook-id")  # type: ignore[call-overload]


async def test_applications_that_are_mounted_side_by_side_have_keys_of_their_own(
    engine: VirtualEngine,
) -> None:
    handlers = [counting(idempotency_key=event_id) for _ in range(2)]
    parts = [Mount(f"/{n}", one(engine, handler)) for n, (handler, _) in enumerate(handlers)]
    async with engine.client(Starlette(routes=parts)) as client:
        for path in ("/0/", "/1/", "/0/", "/1/"):
            answer = await client.post(path, headers={"webhook-id": "evt"}, json={})
            assert answer.status_code == 200, answer.text
    assert [len(ran) for _, ran in handlers] == [1, 1]
