from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route

from durable_endpoints import DurableEndpointsMiddleware, endpoint, endpoint_proxy, step
from durable_endpoints.asgi_transport import AppTransport
from durable_endpoints.testing import VirtualEngine
from durable_endpoints_server.engine.model import Status
from tests.durable_endpoints.helpers import fast, one, run_id_of, star

pytestmark = pytest.mark.anyio


@endpoint
async def sleepy(request: Request) -> Response:
    await step.sleep("nap", "1h")
    return PlainTextResponse("done")


async def test_with_and_without_the_slash_and_with_head(engine: VirtualEngine) -> None:
    async with engine.client(one(engine, sleepy)) as client:
        location = (await client.get("/")).headers["location"]
        await engine.advance("1h")
        for path in (location, location.replace("/wait?", "/wait/?")):
            answer = await client.get(path)
            assert (answer.status_code, answer.text) == (200, "done")
            head = await client.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == "4"


async def test_a_proxy_on_a_route(engine: VirtualEngine) -> None:
    app = Starlette(routes=[Route("/", sleepy), Route("/poll", endpoint_proxy())])
    app.add_middleware(DurableEndpointsMiddleware, engine=engine)
    async with engine.client(app) as client:
        response = await client.get("/")
        assert response.headers["location"].startswith("/poll?")
        await engine.advance("1h")
        assert (await client.get(response.headers["location"])).text == "done"


async def test_refusals(engine: VirtualEngine) -> None:
    async with engine.client(one(engine, sleepy)) as client:
        first, second = await client.get("/"), await client.get("/")
        run_id = run_id_of(first)
        token = first.headers["location"].partition("token=")[2]
        other = second.headers["location"].partition("token=")[2]
        unknown = "01J" + "0" * 23
        cases: list[tuple[dict[str, str], int, str]] = [
            ({}, 400, "bad_request"),
            ({"runId": run_id}, 400, "bad_request"),
            ({"token": token}, 400, "bad_request"),
            ({"runId": run_id, "token": "x"}, 401, "bad_token"),
            ({"runId": run_id, "token": other}, 401, "bad_token"),
            ({"runId": "nope", "token": token}, 401, "bad_token"),
            ({"runId": run_id, "token": "ü\x00"}, 401, "bad_token"),
            ({"runId": unknown, "token": engine.sign_run(unknown)}, 404, "unknown_run"),
        ]
        for params, status, error in cases:
            answer = await client.get("/wait", params=params)
            assert (answer.status_code, answer.json()["error"]) == (status, error)
            assert answer.headers["cache-control"] == "no-store"
        for raw in (b"runId=%ff&token=%ff", b"runId=a&token=b&runId=c", b"%", b"\xff\xfe"):
            answer = await client.get(f"/wait?{raw.decode('latin-1')}")
            assert answer.status_code in (400, 401)
        answer = await client.post(first.headers["location"])
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, DELETE, OPTIONS")


async def test_it_sends_back_to_itself_and_then_says_202(
    engine: VirtualEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable_endpoints.proxy.PATIENCE", 10)
    async with engine.client(one(engine, sleepy)) as client:
        response = await client.get("/")
        url: Any = client.build_request("GET", response.headers["location"]).url
        for turn in range(8):
            answer = await client.get(url)
            assert answer.status_code == 303, turn
            assert answer.headers["durable-run-status"] == "running"
            url = url.join(answer.headers["location"])
        answer = await client.get(url)
        assert answer.status_code == 202
        assert answer.headers["durable-run-status"] == "running"
        assert answer.json()["status"] == "running"
        assert answer.headers["retry-after"] == "1"
        await engine.advance("1h")
        assert (await client.get(url)).text == "done"
        for nonsense in ("-1", "x", "9" * 50, "²"):
            assert (await client.get(url.copy_set_param("turn", nonsense))).text == "done"


async def test_every_answer_of_ours_names_the_run(engine: VirtualEngine) -> None:
    async with engine.client(one(engine, sleepy)) as client:
        response = await client.get("/")
        assert await engine.host.cancel(run_id_of(response), "cancelled")
        answer = await client.get(response.headers["location"])
        assert (answer.status_code, answer.json()["error"]) == (409, "cancelled")
        assert run_id_of(answer) == run_id_of(response)
        assert answer.headers["durable-run-status"] == "cancelled"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"


async def test_a_cancelled_run_stops(engine: VirtualEngine) -> None:
    stopped: list[str] = []

    @endpoint
    async def handler(request: Request) -> Response:
        async def work() -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                stopped.append("body")
                raise

        try:
            await step.run("work", work)
        finally:
            stopped.append("handler")
        raise AssertionError

    async with engine.client(one(engine, handler)) as client:
        asking = asyncio.create_task(client.get("/"))
        await asyncio.sleep(0.05)
        (live,) = engine.host.live.values()
        assert await engine.host.cancel(live.id, "cancelled")
        response = await asyncio.wait_for(asking, 5)
        assert (response.status_code, response.json()["error"]) == (409, "cancelled")
        run = await engine.run(run_id_of(response))
        assert (run.status, run.steps) == (Status.CANCELLED, 0)
        assert not await engine.host.cancel(run.id, "again")
    assert stopped == ["body", "handler"]


async def test_waiters_are_told_at_once(engine: VirtualEngine) -> None:
    async with engine.client(one(engine, sleepy)) as client:
        location = (await client.get("/")).headers["location"]
        waiting = [asyncio.create_task(client.get(location)) for _ in range(20)]
        await asyncio.sleep(0.05)
        await engine.advance("1h")
        answers = await asyncio.wait_for(asyncio.gather(*waiting), 5)
        assert {answer.text for answer in answers} == {"done"}


async def test_cors(engine: VirtualEngine) -> None:
    origin = {"origin": "https://a.example"}
    async with engine.client(one(engine, sleepy)) as client:
        location = (await client.get("/")).headers["location"]
        await engine.advance("1h")
        answer = await client.get(location, headers=origin)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-origin" not in (await client.get(location)).headers
        refused = await client.get("/wait", headers=origin)
        assert refused.headers["access-control-allow-origin"] == "*"
        preflight = await client.options(location, headers=origin)
        assert preflight.status_code == 204
        assert "GET" in preflight.headers["access-control-allow-methods"]
    engine = VirtualEngine()
    app = one(engine, sleepy, cors_origins=["https://a.example"])
    async with engine.client(app) as client:
        answer = await client.get("/wait", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        answer = await client.get("/wait", headers={"origin": "https://b.example"})
        assert "access-control-allow-origin" not in answer.headers


async def test_a_proxy_without_the_middleware_says_so() -> None:
    import httpx

    app = Starlette(routes=[Mount("/wait", endpoint_proxy())])
    async with httpx.AsyncClient(transport=AppTransport(app), base_url="http://a") as client:
        answer = await client.get("/wait/?runId=a&token=b")
        assert answer.status_code == 500
        assert "app.add_middleware(DurableEndpointsMiddleware)" in answer.json()["detail"]


async def test_a_run_past_retention_is_unknown(engine: VirtualEngine) -> None:
    async with engine.client(one(engine, sleepy)) as client:
        location = (await client.get("/")).headers["location"]
        await engine.advance("1h")
        await engine.advance("6d")
        await engine.host._sweeper.sweep()
        assert (await client.get(location)).text == "done"
        await engine.advance("1d")
        engine.clock.move_to(engine.clock.now() + 1)
        await engine.host._sweeper.sweep()
        assert (await client.get(location)).status_code == 404


async def test_a_relative_location_means_what_it_meant(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        return RedirectResponse(request.query_params["to"])

    app = star(engine, Route("/orders/{n}", handler))
    async with engine.client(app) as client:
        for to, expected in (
            ("done", "/orders/done"),
            ("../x?y=1", "/x?y=1"),
            ("/abs", "/abs"),
            ("https://other.example/", "https://other.example/"),
        ):
            location = (await client.get("/orders/1", params={"to": to})).headers["location"]
            await engine.advance("1h")
            answer = await client.get(location)
            assert (answer.status_code, answer.headers["location"]) == (307, expected)


async def test_draining_lets_waiters_go(engine: VirtualEngine) -> None:
    app = fast(engine)
    app.get("/")(sleepy)
    async with engine.client(app) as client:
        location = (await client.get("/")).headers["location"]
        waiting = asyncio.create_task(client.get(location))
        await asyncio.sleep(0.05)
        engine.begin_drain()
        answer = await asyncio.wait_for(waiting, 5)
        assert answer.status_code == 303
        refused = await client.get("/")
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
