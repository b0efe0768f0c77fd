"""What the client finally gets is what the undecorated handler would have sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Form, HTTPException, UploadFile
from pydantic import BaseModel
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from durable_endpoints import (
    DurableEndpointsMiddleware,
    configure,
    endpoint,
    endpoint_proxy,
    step,
)
from durable_endpoints.testing import AppTransport, VirtualEngine
from durable_endpoints_server.engine.model import Status
from tests.durable_endpoints.helpers import assert_same, fast, follow, one, run_id_of, star

pytestmark = pytest.mark.anyio

FILE = Path(__file__)


class Thing(BaseModel):
    name: str
    price: float = 1.5


def two_cookies() -> Response:
    response = PlainTextResponse("cookies")
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", httponly=True)
    response.headers.append("x-many", "1")
    response.headers.append("x-many", "2")
    return response


async def numbers() -> AsyncIterator[bytes]:
    for n in range(5):
        await asyncio.sleep(0)
        yield b"%d\n" % n


def with_length() -> Response:
    return StreamingResponse(numbers(), headers={"content-length": "10"})


RESPONSES: dict[str, Callable[[], Any]] = {
    "json": lambda: JSONResponse({"a": [1, "ü"]}, 202),
    "text": lambda: PlainTextResponse("text"),
    "cookies": two_cookies,
    "binary": lambda: Response(bytes(range(256)) * 10, media_type="application/octet-stream"),
    "empty": lambda: Response(),
    "204": lambda: Response(status_code=204),
    "304": lambda: Response(status_code=304, headers={"etag": '"x"'}),
    "404": lambda: PlainTextResponse("gone", 404),
    "503": lambda: PlainTextResponse("busy", 503, {"retry-after": "5"}),
    "redirect": lambda: RedirectResponse("/elsewhere"),
    "stream": lambda: StreamingResponse(numbers(), media_type="text/plain"),
    "stream with a length": with_length,
    "file": lambda: FileResponse(FILE, headers={"last-modified": "x", "etag": "y"}),
}


def pair(engine: VirtualEngine, make: Callable[[], Any], **options: Any) -> tuple[Any, Any]:
    """The same handler, undecorated in one application and durable in another."""

    async def plain(request: Request) -> Response:
        return make()  # type: ignore[no-any-return]

    @endpoint
    async def durable(request: Request) -> Response:
        if "nap" in request.query_params:
            await step.sleep("nap", "1h")
        await step.run("work", lambda: 1)
        return make()  # type: ignore[no-any-return]

    methods = ["GET", "HEAD", "POST"]
    return (
        star(VirtualEngine(), Route("/", plain, methods=methods), **options),
        star(engine, Route("/", durable, methods=methods), **options),
    )


@pytest.mark.parametrize("kind", RESPONSES)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
async def test_the_same_response(engine: VirtualEngine, kind: str, method: str) -> None:
    plain, durable = pair(engine, RESPONSES[kind])
    async with (
        httpx.AsyncClient(transport=AppTransport(plain), base_url="http://testserver") as bare,
        engine.client(durable) as client,
    ):
        expected = await bare.request(method, "/")
        direct = await client.request(method, "/", headers={"idempotency-key": "k"})
        assert_same(direct, expected)
        client.cookies.clear()  # they tell callers apart
        repeated = await client.request(method, "/", headers={"idempotency-key": "k"})
        assert_same(repeated, expected)
        redirected = await client.request(method, "/?nap=1")
        assert redirected.status_code == 303
        await engine.advance("1h")
        how = "HEAD" if method == "HEAD" else "GET"
        for _ in range(2):
            answer = await client.request(how, redirected.headers["location"])
            assert_same(answer, expected)


async def test_http_exceptions_are_answers(engine: VirtualEngine) -> None:
    app = fast(engine)

    class Odd(Exception):
        pass

    @app.exception_handler(Odd)
    async def odd(request: Request, error: Odd) -> Response:
        return PlainTextResponse("odd", 299)

    @app.get("/http")
    @endpoint
    async def http() -> None:
        await step.sleep("nap", "1h")
        raise HTTPException(409, {"why": "conflict"}, {"x-a": "b"})

    @app.get("/own")
    @endpoint
    async def own() -> None:
        await step.run("a", lambda: 1)
        raise Odd

    async with engine.client(app) as client:
        response = await client.get("/http")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert (answer.status_code, answer.json()) == (409, {"detail": {"why": "conflict"}})
        assert answer.headers["x-a"] == "b"
        assert (await engine.run(run_id_of(response))).status is Status.COMPLETED
        response = await client.get("/own")
        assert (response.status_code, response.text) == (299, "odd")


@pytest.mark.parametrize("has_handler", [True, False])
@pytest.mark.parametrize("debug", [True, False])
async def test_an_unhandled_error_ends_with_the_applications_own_500(
    engine: VirtualEngine, has_handler: bool, debug: bool
) -> None:
    @endpoint(retries=0)
    async def handler(request: Request) -> Response:
        if "nap" in request.query_params:
            await step.sleep("nap", "1h")
        raise ValueError("a secret in the message")

    async def sorry(request: Request, error: Exception) -> Response:
        return JSONResponse({"sorry": type(error).__name__}, 500)

    app = one(engine, handler)
    app.debug = debug
    if has_handler:
        app.add_exception_handler(Exception, sorry)
    async with engine.client(app) as client:
        direct = await client.get("/")
        redirected = await client.get("/?nap=1")
        answer = await follow(engine, client, redirected.headers["location"], "1h")
        for response in (direct, answer):
            assert response.status_code == 500
            assert "secret" not in response.text
            if has_handler:
                assert response.json() == {"sorry": "ValueError"}
            else:
                assert response.text == "Internal Server Error"
        run = await engine.run(run_id_of(direct))
        assert (run.status, run.reason) == (Status.FAILED, "exception")


async def test_fastapi_values_and_models(engine: VirtualEngine) -> None:
    def build(decorate: Callable[[Any], Any], app: FastAPI) -> FastAPI:
        @app.post("/model", status_code=201, response_model=Thing)
        @decorate
        async def model(thing: Thing) -> dict[str, Any]:
            return {"name": thing.name, "price": 2, "hidden": True}

        @app.get("/value/{n}")
        @decorate
        async def value(n: int, q: str = "x") -> Any:
            return {"n": n, "q": q}

        @app.post("/form")
        @decorate
        async def form(a: str = Form(), file: UploadFile | None = None) -> Any:
            content = await file.read() if file is not None else b""
            return {"a": a, "size": len(content)}

        @app.post("/raw")
        @decorate
        async def raw(request: Request) -> Response:
            chunks = [chunk async for chunk in request.stream()]
            return Response(b"".join(chunks)[::-1])

        @app.get("/invalid", response_model=Thing)
        @decorate
        async def invalid() -> Any:
            return {"no": "name"}

        return app

    def durable(handler: Any) -> Any:
        return endpoint(retries=0)(handler)

    plain = build(lambda handler: handler, fast(VirtualEngine()))
    made = build(durable, fast(engine))
    async with (
        httpx.AsyncClient(transport=AppTransport(plain), base_url="http://testserver") as bare,
        engine.client(made) as client,
    ):
        big = b"x" * 300_000
        requests: list[dict[str, Any]] = [
            {"method": "POST", "url": "/model", "json": {"name": "ü"}},
            {"method": "POST", "url": "/model", "json": {"wrong": 1}},
            {"method": "POST", "url": "/model", "content": b"{not json"},
            {"method": "GET", "url": "/value/5?q=a&q=b"},
            {"method": "GET", "url": "/value/five"},
            {"method": "POST", "url": "/form", "data": {"a": "1"}},
            {"method": "POST", "url": "/form", "data": {"a": "1"}, "files": {"file": ("f", big)}},
            {"method": "POST", "url": "/raw", "content": bytes(range(256))},
            {"method": "GET", "url": "/invalid"},
            {"method": "GET", "url": "/nowhere"},
            {"method": "DELETE", "url": "/raw"},
        ]
        for request in requests:
            assert_same(await client.request(**request), await bare.request(**request))


async def test_what_dependencies_answer_is_no_run(engine: VirtualEngine) -> None:
    app = fast(engine)

    @app.post("/{n}")
    @endpoint
    async def handler(n: int) -> int:
        return n

    async with engine.client(app) as client:
        response = await client.post("/x")
        assert response.status_code == 422
        assert "durable-run-id" not in response.headers
        assert (await engine.store.list_runs(list(Status), None, 10)).lines == []


async def test_the_input_is_the_same_after_a_suspension(engine: VirtualEngine) -> None:
    app = fast(engine)
    seen: list[Any] = []

    @app.post("/multipart")
    @endpoint
    async def multipart(file: UploadFile, name: str = Form()) -> Any:
        seen.append((name, await file.read(), file.filename, file.content_type))
        await step.sleep("nap", "1h")
        return "ok"

    @app.post("/raw/{path:path}")
    @endpoint
    async def raw(request: Request) -> Any:
        seen.append(
            (
                request.method,
                str(request.url),
                request.path_params,
                sorted(request.headers.items()),
                request.client,
                await request.body(),
            )
        )
        await step.sleep("nap", "1h")
        return "ok"

    async with engine.client(app) as client:
        content = bytes(range(256)) * 2_000
        response = await client.post(
            "/multipart", data={"name": "ü"}, files={"file": ("a.bin", content, "x/y")}
        )
        await follow(engine, client, response.headers["location"], "1h")
        assert seen[0] == seen[1]
        assert seen[0][1] == content
        seen.clear()
        response = await client.post(
            "/raw/a%20b/%C3%BC?x=1&x=2&y=%C3%BC",
            content=b"\x00\xff",
            headers={"x-own": "1", "cookie": "a=1; b=2", "accept-encoding": "identity"},
        )
        await follow(engine, client, response.headers["location"], "1h")
        first, second = seen
        kept = [pair for pair in first[3] if pair[0] not in ("accept-encoding", "connection")]
        assert second == (*first[:3], kept, *first[4:])


async def test_background_tasks_run_once_in_the_last_pass(engine: VirtualEngine) -> None:
    ran: list[str] = []

    @endpoint
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        await step.sleep("again", "1h")
        return PlainTextResponse("ok", background=BackgroundTask(ran.append, "x"))

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "2h")
        assert answer.text == "ok"
        await asyncio.sleep(0.05)
    assert ran == ["x"]


async def test_a_failing_background_task_changes_nothing(engine: VirtualEngine) -> None:
    def fail() -> None:
        raise ValueError

    @endpoint
    async def handler(request: Request) -> Response:
        await step.run("a", lambda: 1)
        return PlainTextResponse("ok", background=BackgroundTask(fail))

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert (response.status_code, response.text) == (200, "ok")
        assert (await engine.run(run_id_of(response))).status is Status.COMPLETED


async def test_a_step_after_the_end_is_an_error(engine: VirtualEngine) -> None:
    errors: list[BaseException] = []

    async def late() -> None:
        try:
            await step.run("late", lambda: 1)
        except Exception as error:
            errors.append(error)

    async def stream() -> AsyncIterator[bytes]:
        yield b"a"
        try:
            await step.run("in the stream", lambda: 1)
        except Exception as error:
            errors.append(error)
        yield b"b"

    @endpoint
    async def handler(request: Request) -> Response:
        if "stream" in request.query_params:
            return StreamingResponse(stream())
        return PlainTextResponse("ok", background=BackgroundTask(late))

    async with engine.client(one(engine, handler)) as client:
        await client.get("/")
        await asyncio.sleep(0.05)
        response = await client.get("/?stream=1")
        assert response.content == b"ab"
    assert [type(error).__name__ for error in errors] == ["NotInRunError"] * 2
    assert "response" in str(errors[0])


async def test_a_stream_that_fails_in_the_middle_is_cut_off_and_tried_again(
    engine: VirtualEngine,
) -> None:
    passes: list[int] = []

    async def stream() -> AsyncIterator[bytes]:
        passes.append(1)
        yield b"a" * 10
        await asyncio.sleep(0)
        if len(passes) < 2:
            raise ValueError("in the middle")
        yield b"b"

    @endpoint
    async def handler(request: Request) -> Response:
        return StreamingResponse(stream())

    async with engine.client(one(engine, handler)) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/", headers={"idempotency-key": "k"})
        await engine.advance("1m")
        response = await client.get("/", headers={"idempotency-key": "k"})
        assert response.content == b"a" * 10 + b"b"


async def test_a_response_that_is_too_large_to_keep_still_reaches_the_client(
    engine: VirtualEngine,
) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        if "nap" in request.query_params:
            await step.sleep("nap", "1h")
        return PlainTextResponse("x" * 1_001)

    async with engine.client(one(engine, handler, max_response_body=1_000)) as client:
        response = await client.get("/", headers={"idempotency-key": "k"})
        assert len(response.text) == 1_001
        repeated = await client.get("/", headers={"idempotency-key": "k"})
        assert repeated.status_code == 507
        response = await client.get("/?nap=1")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert (answer.status_code, answer.json()["error"]) == (507, "response_too_large")


async def test_omit_response_body(engine: VirtualEngine) -> None:
    @endpoint(omit_response_body=True)
    async def handler(request: Request) -> Response:
        if "nap" in request.query_params:
            await step.sleep("nap", "1h")
        return PlainTextResponse("secret")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/", headers={"idempotency-key": "k"})
        assert response.text == "secret"
        repeated = await client.get("/", headers={"idempotency-key": "k"})
        assert (repeated.status_code, repeated.json()["error"]) == (410, "response_not_kept")
        response = await client.get("/?nap=1")
        location = response.headers["location"]
        await engine.advance("1h")
        assert (await client.head(location)).headers["content-length"] == "6"
        await engine.settle()
        assert (await client.get(location)).text == "secret"  # who only looked has not got it
        await engine.settle()
        assert (await client.get(location)).status_code == 410
        response = await client.get("/?nap=1")
        await engine.advance("1h")
        await engine.advance("2h")
        await engine.host._sweeper.sweep()
        assert (await client.get(response.headers["location"])).status_code == 410


async def test_omit_request_body(engine: VirtualEngine) -> None:
    @endpoint(omit_request_body=True)
    async def handler(request: Request) -> Response:
        body = await request.body()
        await step.sleep("nap", "1h")
        return Response(body)

    async with engine.client(one(engine, handler)) as client:
        response = await client.post("/", content=b"secret")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.content == b"secret"
        entry = await engine.store.entry(run_id_of(response))
        assert entry is not None
        assert entry.request is None


async def test_a_handler_may_find_out_that_its_request_shall_not_be_kept(
    engine: VirtualEngine,
) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        if await request.body() == b"secret":
            configure(omit_request_body=True)
        return Response()

    async with engine.client(one(engine, handler)) as client:
        for content, is_kept in ((b"secret", False), (b"talk", True)):
            response = await client.post("/", content=content)
            entry = await engine.store.entry(response.headers["durable-run-id"])
            assert entry is not None
            assert (entry.request is not None) is is_kept


# Middlewares


async def test_compression_inside_is_not_kept_for_one_client(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        return PlainTextResponse("x" * 5_000)

    for inside in (True, False):
        gzip = [Middleware(GZipMiddleware, minimum_size=100)]
        app = star(engine, Route("/", handler), inside=gzip if inside else [])
        if not inside:
            app.add_middleware(GZipMiddleware, minimum_size=100)
        async with engine.client(app) as client:
            response = await client.get("/")
            await engine.advance("1h")
            plain = await client.get(
                response.headers["location"], headers={"accept-encoding": "identity"}
            )
            assert plain.text == "x" * 5_000
            assert "content-encoding" not in plain.headers


async def test_cors_and_sessions_inside_and_outside(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        visits = request.session.get("visits", 0) + 1
        request.session["visits"] = visits
        await step.sleep("nap", "1h")
        return JSONResponse(visits)

    for inside in (True, False):
        own = [
            Middleware(CORSMiddleware, allow_origins=["http://a.example"]),
            Middleware(SessionMiddleware, secret_key="x"),
        ]
        app = star(engine, Route("/", handler), inside=own if inside else [])
        if not inside:
            for middleware in reversed(own):
                app.add_middleware(middleware.cls, *middleware.args, **middleware.kwargs)
        async with engine.client(app) as client:
            headers = {"origin": "http://a.example"}
            response = await client.get("/", headers=headers)
            assert response.status_code == 303
            await engine.advance("1h")
            answer = await client.get(response.headers["location"], headers=headers)
            assert answer.json() == 1
            assert answer.headers.get_list("access-control-allow-origin") == ["http://a.example"]


async def test_pathsend_is_not_offered_to_durable_handlers(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        return FileResponse(FILE)

    app = one(engine, handler)

    async def offering(scope: Any, receive: Any, send: Any) -> None:
        scope["extensions"] = {"http.response.pathsend": {}}
        await app(scope, receive, send)

    async with engine.client(offering) as client:
        response = await client.get("/", headers={"idempotency-key": "k"})
        assert response.content == FILE.read_bytes()
        repeated = await client.get("/", headers={"idempotency-key": "k"})
        assert repeated.content == FILE.read_bytes()


async def test_range_requests(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        if "nap" in request.query_params:
            await step.sleep("nap", "1h")
        return FileResponse(FILE)

    async with engine.client(one(engine, handler)) as client:
        part = await client.get("/", headers={"range": "bytes=0-9"})
        assert (part.status_code, part.content) == (206, FILE.read_bytes()[:10])
        response = await client.get("/?nap=1", headers={"range": "bytes=0-9"})
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert (answer.status_code, answer.content) == (200, FILE.read_bytes())


async def test_a_large_body_streams_and_is_kept(engine: VirtualEngine) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for n in range(100):
            yield bytes([n]) * 10_000

    @endpoint
    async def handler(request: Request) -> Response:
        return StreamingResponse(chunks())

    async with engine.client(one(engine, handler)) as client:
        first = await client.get("/", headers={"idempotency-key": "k"})
        again = await client.get("/", headers={"idempotency-key": "k"})
        assert first.content == again.content == b"".join(bytes([n]) * 10_000 for n in range(100))


async def test_chunks_pass_as_they_come(engine: VirtualEngine) -> None:
    gate = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        await gate.wait()
        yield b"last"

    @endpoint
    async def handler(request: Request) -> Response:
        return StreamingResponse(chunks())

    async with engine.client(one(engine, handler)) as client, client.stream("GET", "/") as response:
        received = response.aiter_bytes()
        assert await asyncio.wait_for(anext(received), 5) == b"first"
        gate.set()
        assert await asyncio.wait_for(anext(received), 5) == b"last"


class Recorder:
    """A client that notes what it had when, and what was on disk then."""

    def __init__(self, engine: VirtualEngine, app: Any) -> None:
        self.engine = engine
        self.app = app
        self.statuses: list[tuple[str, Status | None]] = []

    async def get(self, method: str = "GET") -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            runs = (await self.engine.store.list_runs(list(Status), None, 1)).lines
            more = "+" if message.get("more_body") else ""
            self.statuses.append((message["type"][14:] + more, runs[0].run.status))

        scope = {
            "type": "http",
            "method": method,
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "headers": [],
            "scheme": "http",
            "server": ("a", 80),
            "client": None,
            "state": {},
            "http_version": "1.1",
        }
        await self.app(scope, receive, send)


@pytest.mark.parametrize(
    ("kind", "method", "early"),
    [
        ("json", "GET", []),
        ("204", "GET", []),
        ("json", "HEAD", []),
        ("stream", "HEAD", []),
        ("stream", "GET", ["start", *["body+"] * 5]),
        # Here the client knows from the length that the fifth chunk is the last.
        ("stream with a length", "GET", ["start", *["body+"] * 4]),
    ],
)
async def test_no_client_sees_the_end_before_it_is_recorded(
    engine: VirtualEngine, kind: str, method: str, early: list[str]
) -> None:
    _, durable = pair(engine, RESPONSES[kind])
    recorder = Recorder(engine, durable)
    async with engine.client(durable):
        await recorder.get(method)
    before = [name for name, status in recorder.statuses if status is Status.RUNNING]
    after = [name for name, status in recorder.statuses if status is Status.COMPLETED]
    assert before == early
    assert after[-1] == "body"
    if kind == "stream with a length":
        assert after == ["body+", "body"]


# Ways of answering later


async def later(request: Request) -> Response:
    await step.sleep("nap", "1h")
    return PlainTextResponse("done")


async def test_a_token_instead_of_a_redirect(engine: VirtualEngine) -> None:
    handler = endpoint(async_response="token")(later)
    async with engine.client(one(engine, handler)) as client:
        response = await client.post("/")
        assert response.status_code == 200
        told = response.json()
        assert set(told) == {"run_id", "token", "url"}
        assert told["run_id"] == run_id_of(response)
        assert response.headers["cache-control"] == "no-store"
        await engine.advance("1h")
        answer = await client.get("/wait", params={"runId": told["run_id"], "token": told["token"]})
        assert answer.text == "done"


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_custom_response(engine: VirtualEngine, is_async: bool) -> None:
    def respond(request: Request, run_id: str, token: str) -> Response:
        return JSONResponse({"poll": run_id, "path": request.url.path}, 202)

    async def respond_async(request: Request, run_id: str, token: str) -> Response:
        return respond(request, run_id, token)

    handler = endpoint(async_response=respond_async if is_async else respond)(later)
    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert response.status_code == 202
        assert response.json() == {"poll": run_id_of(response), "path": "/"}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, "/wait?"),
        ("/poll", "/poll?"),
        ("/poll?x=1", "/poll?x=1&"),
        ("https://other.example/wait?x=1", "https://other.example/wait?x=1&"),
    ],
)
async def test_redirect_urls(engine: VirtualEngine, setting: Any, expected: str) -> None:
    handler = endpoint(async_redirect_url=setting)(later)
    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        location = response.headers["location"]
        assert location.startswith(expected + "runId=" + run_id_of(response) + "&token=")


async def test_redirect_urls_from_callables(engine: VirtualEngine) -> None:
    async def asynchronous(run_id: str, token: str) -> str:
        return f"https://a.example/{run_id}/{token}"

    settings: list[Callable[[str, str], str | Awaitable[str]]] = [
        lambda run_id, token: f"https://a.example/{run_id}/{token}",
        asynchronous,
    ]
    for setting in settings:
        handler = endpoint(async_redirect_url=setting)(later)
        async with engine.client(one(engine, handler)) as client:
            response = await client.get("/")
            _, _, rest = response.headers["location"].partition("https://a.example/")
            run_id, token = rest.split("/")
            assert engine.verify_run(run_id, token)


async def test_a_callable_that_fails_is_replaced_by_the_default(engine: VirtualEngine) -> None:
    def fail(*_: Any) -> Any:
        raise ValueError

    for options in ({"async_response": fail}, {"async_redirect_url": fail}):
        handler = endpoint(**options)(later)  # type: ignore[call-overload]
        async with engine.client(one(engine, handler)) as client:
            response = await client.get("/")
            assert response.status_code == 303
            assert response.headers["location"].startswith("/wait?runId=")


async def test_without_a_proxy_the_middleware_answers_itself(engine: VirtualEngine) -> None:
    app = FastAPI()
    app.add_middleware(DurableEndpointsMiddleware, engine=engine)
    app.get("/")(endpoint(later))
    async with engine.client(app) as client:
        response = await client.get("/")
        location = response.headers["location"]
        assert location.startswith("/.durable/wait?runId=")
        answer = await follow(engine, client, location, "1h")
        assert answer.text == "done"
        slash = location.replace("wait?", "wait/?")
        assert (await client.get(slash)).text == "done"


async def test_defaults_of_the_middleware(engine: VirtualEngine) -> None:
    app = one(engine, endpoint(later), async_response="token")
    async with engine.client(app) as client:
        assert "token" in (await client.get("/")).json()


async def test_headers_from_the_network_cannot_forge_a_reentry(engine: VirtualEngine) -> None:
    seen: list[Any] = []

    @endpoint
    async def handler(request: Request) -> Response:
        seen.append(request.scope.get("durable_endpoints"))
        return PlainTextResponse("ok")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get(
            "/",
            headers={
                "durable-run-id": "x",
                "x-run-id": "x",
                "x-inngest-signature": "",
                "durable_endpoints.reentry": "1",
            },
        )
        assert response.status_code == 200
        assert seen == [None]


async def test_starlette_http_exception_in_a_mounted_application(engine: VirtualEngine) -> None:
    sub = FastAPI()

    @sub.get("/x/{n}")
    @endpoint
    async def handler(n: int) -> None:
        await step.sleep("nap", "1h")
        raise StarletteHTTPException(402)

    app = FastAPI()
    app.add_middleware(DurableEndpointsMiddleware, engine=engine)
    app.mount("/sub", sub)
    app.mount("/wait", endpoint_proxy())
    async with engine.client(app) as client:
        response = await client.get("/sub/x/1")
        assert response.status_code == 303
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.status_code == 402
        assert (await engine.run(run_id_of(response))).function_id == "GET /sub/x/{n}"
