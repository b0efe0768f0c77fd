from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from durable_endpoints import endpoint, step
from durable_endpoints.protocol.messages import StoredRequest
from durable_endpoints.requests import fingerprint
from durable_endpoints.testing import VirtualEngine
from durable_endpoints_server.engine.model import Status
from tests.durable_endpoints.helpers import assert_same, fast, follow, one, run_id_of, star

pytestmark = pytest.mark.anyio


def counting() -> tuple[Any, list[int]]:
    ran: list[int] = []

    @endpoint
    async def handler(request: Request) -> Response:
        async def work() -> int:
            ran.append(1)
            return len(ran)

        number = await step.run("work", work)
        if "nap" in request.query_params:
            await step.sleep("nap", "1h")
        if "fail" in request.query_params:
            return PlainTextResponse(f"failed {number}", 500)
        return JSONResponse({"number": number}, 201)

    return handler, ran


def key(value: str = "k", **headers: str) -> dict[str, str]:
    return {"idempotency-key": value, **headers}


@pytest.mark.parametrize("query", ["", "?fail=1"])
async def test_a_repeat_gets_the_first_answer(engine: VirtualEngine, query: str) -> None:
    handler, ran = counting()
    async with engine.client(one(engine, handler)) as client:
        first = await client.post(f"/{query}", headers=key())
        second = await client.post(f"/{query}", headers=key())
        assert_same(second, first)
        assert run_id_of(second) == run_id_of(first)
        assert ran == [1]
        quoted = await client.post(f"/{query}", headers=key('"k"'))
        assert_same(quoted, first)
        third = await client.post(f"/{query}", headers=key("other"))
        assert run_id_of(third) != run_id_of(first)


async def test_a_repeat_joins_a_run_under_way(engine: VirtualEngine) -> None:
    gate = asyncio.Event()
    ran: list[int] = []

    @endpoint
    async def handler(request: Request) -> Response:
        async def work() -> None:
            ran.append(1)
            await gate.wait()

        await step.run("work", work)
        return PlainTextResponse("once")

    async with engine.client(one(engine, handler)) as client:
        asking = [asyncio.create_task(client.post("/", headers=key())) for _ in range(5)]
        await asyncio.sleep(0.1)
        assert ran == [1]
        gate.set()
        answers = await asyncio.gather(*asking)
        assert {answer.text for answer in answers} == {"once"}
        assert len({run_id_of(answer) for answer in answers}) == 1
    assert ran == [1]


async def test_a_repeat_of_a_sleeping_run_waits_and_is_redirected(engine: VirtualEngine) -> None:
    handler, ran = counting()
    async with engine.client(one(engine, handler, respond_within="100ms")) as client:
        first = await client.post("/?nap=1", headers=key())
        assert first.status_code == 303
        second = await client.post("/?nap=1", headers=key())
        assert second.status_code == 303
        assert second.headers["location"] == first.headers["location"]
        answer = await follow(engine, client, second.headers["location"], "1h")
        assert answer.json() == {"number": 1}
        third = await client.post("/?nap=1", headers=key())
        assert_same(third, answer)
    assert ran == [1]


@pytest.mark.parametrize(
    "other",
    [
        {"method": "PUT"},
        {"url": "/other"},
        {"url": "/?x=1"},
        {"content": b"other"},
        {"headers": {"content-type": "text/other"}},
    ],
)
async def test_a_key_with_another_request_is_refused(
    engine: VirtualEngine, other: dict[str, Any]
) -> None:
    handler, ran = counting()
    app = star(engine, Route("/{p:path}", handler, methods=["POST", "PUT"]))
    request = {"method": "POST", "url": "/", "content": b"body", "headers": key()}
    async with engine.client(app) as client:
        first = await client.request(**request)  # type: ignore[arg-type]
        changed = {**request, **other}
        changed["headers"] = {**key(), **other.get("headers", {})}
        second = await client.request(**changed)
        assert second.status_code == 422
        assert second.json()["error"] == "idempotency_key_reused"
        # A refusal uses no key up.
        assert_same(await client.request(**request), first)  # type: ignore[arg-type]
    assert ran == [1]


@pytest.mark.parametrize("bad", ["", " ", "x" * 256, "\x7f", "a\tb"])
async def test_a_bad_key_is_refused(engine: VirtualEngine, bad: str) -> None:
    handler, ran = counting()
    async with engine.client(one(engine, handler)) as client:
        response = await client.post("/", headers=key(bad))
        assert (response.status_code, response.json()["error"]) == (400, "bad_idempotency_key")
    assert ran == []


async def test_multipart_bodies_are_compared_by_their_parts(engine: VirtualEngine) -> None:
    app = fast(engine)

    @app.post("/")
    @endpoint
    async def handler(request: Request) -> str:
        async with request.form() as form:
            return ",".join(sorted(form))

    async with engine.client(app) as client:
        parts: dict[str, Any] = {"data": {"a": "1"}, "files": {"f": ("n", b"content")}}
        first = await client.post("/", headers=key(), **parts)
        second = await client.post("/", headers=key(), **parts)
        assert first.request.content != second.request.content  # another boundary
        assert_same(second, first)
        parts["files"] = {"f": ("n", b"other")}
        assert (await client.post("/", headers=key(), **parts)).status_code == 422


@pytest.mark.parametrize("header", ["authorization", "cookie"])
async def test_a_key_belongs_to_who_used_it_first(engine: VirtualEngine, header: str) -> None:
    handler, ran = counting()
    async with engine.client(one(engine, handler)) as client:
        mine = await client.post("/", headers=key(**{header: "me=1"}))
        assert mine.status_code == 201
        for stranger in ({header: "you=1"}, {}):
            response = await client.post("/", headers=key(**stranger))
            assert response.status_code == 422
            assert "number" not in response.text
            assert "durable-run-id" not in response.headers
        assert_same(await client.post("/", headers=key(**{header: "me=1"})), mine)
    assert ran == [1]


class Backend(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        name = conn.headers.get("authorization", "").split(":")[0]
        return (AuthCredentials(["a"]), _Named(name)) if name else None


class _Named(SimpleUser):
    @property
    def identity(self) -> str:
        return self.username


async def test_an_authenticated_user_may_come_with_a_new_token(engine: VirtualEngine) -> None:
    handler, ran = counting()
    inside = [Middleware(AuthenticationMiddleware, backend=Backend())]
    app = star(engine, Route("/", handler, methods=["POST"]), inside=inside)
    async with engine.client(app) as client:
        first = await client.post("/", headers=key(authorization="ada:token1"))
        second = await client.post("/", headers=key(authorization="ada:token2"))
        assert_same(second, first)
        other = await client.post("/", headers=key(authorization="bob:token1"))
        assert other.status_code == 422
    assert ran == [1]


@pytest.mark.parametrize("is_async", [True, False])
async def test_idempotency_scope(engine: VirtualEngine, is_async: bool) -> None:
    async def scope_async(request: Request) -> str:
        return request.headers["x-tenant"]

    def scope(request: Request) -> str:
        return request.headers["x-tenant"]

    @endpoint(idempotency_scope=scope_async if is_async else scope)
    async def handler(request: Request) -> Response:
        return PlainTextResponse("ok")

    async with engine.client(one(engine, handler)) as client:
        one_tenant = await client.post("/", headers=key(**{"x-tenant": "1", "authorization": "a"}))
        same = await client.post("/", headers=key(**{"x-tenant": "1", "authorization": "b"}))
        assert run_id_of(same) == run_id_of(one_tenant)
        other = await client.post("/", headers=key(**{"x-tenant": "2", "authorization": "a"}))
        assert other.status_code == 422


async def test_a_key_is_looked_at_after_authentication(engine: VirtualEngine) -> None:
    from fastapi import Depends, HTTPException

    app = fast(engine)

    def authenticate(request: Request) -> None:
        if request.headers.get("authorization") != "good":
            raise HTTPException(401)

    @app.post("/")
    @endpoint
    async def handler(_: None = Depends(authenticate)) -> str:
        return "secret"

    async with engine.client(app) as client:
        assert (await client.post("/", headers=key(authorization="good"))).status_code == 200
        response = await client.post("/", headers=key(authorization="bad"))
        assert response.status_code == 401
        # And a refusal by the application uses no key up.
        assert (await client.post("/", headers=key("k2", authorization="bad"))).status_code == 401
        assert (await client.post("/", headers=key("k2", authorization="good"))).status_code == 200


async def test_a_repeat_after_a_crash_gets_the_answer(engine: VirtualEngine) -> None:
    gate = asyncio.Event()
    calls: list[int] = []

    @endpoint
    async def handler(request: Request) -> Response:
        calls.append(1)
        if len(calls) == 1:
            await gate.wait()
        return PlainTextResponse("survived")

    app = one(engine, handler)
    async with engine.client(app) as client:
        asking = asyncio.create_task(client.post("/", headers=key()))
        await asyncio.sleep(0.05)
        await engine.crash()
        asking.cancel()
        response = await client.post("/", headers=key())
        assert (response.status_code, response.text) == (200, "survived")
        runs = (await engine.store.list_runs(list(Status), None, 10)).lines
        assert len(runs) == 1
        gate.set()


def test_requests_are_compared_part_by_part() -> None:
    """What ends one part is not what begins the next one."""

    def of(method: str, path: str, query: bytes, kind: bytes, body: bytes) -> str:
        headers = [(b"content-type", kind)]
        return fingerprint(
            StoredRequest(
                method, "http", "1.1", path, b"", "", query, headers, None, None, body, {}
            ),
            None,
        )

    parts = ("POST", "/ab", b"cd", b"ef", b"gh")
    shifted = [
        ("POST/", "ab", b"cd", b"ef", b"gh"),
        ("POST", "/a", b"bcd", b"ef", b"gh"),
        ("POST", "/ab", b"c", b"def", b"gh"),
        ("POST", "/ab", b"cd", b"efg", b"h"),
    ]
    assert of(*parts) == of(*parts)
    assert len({of(*parts), *(of(*other) for other in shifted)}) == 5
