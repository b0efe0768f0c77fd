"""Mistakes in how the pieces are put together: decorators, applications, settings, clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from durable_endpoints import (
    DurableEndpointsError,
    DurableEndpointsMiddleware,
    Hook,
    configure,
    endpoint,
    endpoint_proxy,
    fetch_with_stream,
    remember,
    send_event,
    step,
)
from durable_endpoints.client import fetch_with_stream_sync
from durable_endpoints.hooks import Call, RunInfo, StepData, StepInfo
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import fast, one
from tests.mistakes.corpus import Corpus, Mistake, assert_told

written, started, requested = Corpus(), Corpus(), Corpus()


def work() -> int:
    return 1


async def handler(request: Request) -> Response:
    await step.run("a", work)
    return PlainTextResponse("ok")


# What fails as soon as it is written


@written.says("handler is decorated with @endpoint twice", "keep the one directly above the `def`")
def decorated_twice() -> None:
    endpoint(endpoint(handler))  # here


@written.says("@endpoint on the class Orders", "decorate its methods (get, post, …)")
def class_that_is_decorated() -> None:
    class Orders(HTTPEndpoint):
        pass

    endpoint(Orders)  # here


@written.says("rows is a generator", "Do the durable work in a handler that returns its response")
def generator_that_is_decorated() -> None:
    def rows() -> Iterator[int]:
        yield 1

    endpoint(rows)  # here


@written.says("chat is a WebSocket handler", "Do the durable work in an HTTP endpoint")
def websocket_that_is_decorated() -> None:
    async def chat(websocket: WebSocket) -> None: ...

    endpoint(chat)  # here


@written.says("@endpoint goes below @staticmethod")
def method_that_is_decorated_in_the_wrong_order() -> None:
    endpoint(staticmethod(work))  # here


@written.says("@endpoint decorates a handler, not 'report'", '@endpoint(function_id="report")')
def name_without_a_keyword() -> None:
    endpoint("report")  # here


@written.says("unknown option 'retry'", "did you mean 'retries'?")
def option_with_a_typing_error() -> None:
    endpoint(retry=3)  # here


@written.says("'database' is set for the whole application", "add_middleware(")
def setting_of_the_application() -> None:
    endpoint(database="sqlite:///x.db")  # here


@written.says("retries=21: give a whole number from 0 to 20", "3 means four tries")
def too_many_retries() -> None:
    endpoint(retries=21)  # here


@written.says("async_response='tokn'", 'give "redirect", "token", or a callable')
def async_response_with_a_typing_error() -> None:
    endpoint(async_response="tokn")  # here


@written.says("async_redirect_url='wait'", "give a path such as '/wait'")
def redirect_without_a_slash() -> None:
    endpoint(async_redirect_url="wait")  # here


@written.says("respond_within: '5 minutes' is not a duration", '"1h30m"')
def option_in_words() -> None:
    endpoint(respond_within="5 minutes")  # here


@written.says("session): a dependency with yield", "remember one that returns")
def dependency_with_yield() -> None:
    def session() -> Iterator[int]:
        yield 1

    remember(session)  # here


@written.says("which is no function", "without calling it, as in Depends(remember(current_user))")
def dependency_that_was_called() -> None:
    remember(work())  # here


@written.says("configure() is called outside a run", "goes into @endpoint(…) or the middleware")
def configure_at_import() -> None:
    configure(retries=0)  # here


@written.says("step.wait_for_event('a') is called outside a request: nothing would wake it")
def wait_at_import() -> None:
    step.wait_for_event("a", event="paid", timeout="1h")  # here


@pytest.mark.parametrize("mistake", written.mistakes, ids=str)
def test_a_mistake_is_told_where_it_is_written(mistake: Mistake) -> None:
    with pytest.raises(DurableEndpointsError) as raised:
        mistake.code()
    assert_told(mistake, str(raised.value))


# What fails the start


@started.says("unknown option 'databse'", "did you mean 'database'?")
def setting_with_a_typing_error(folder: Path) -> dict[str, Any]:
    return {"databse": "x.db"}


@started.says("function_id names one endpoint", "@endpoint(function_id='report')")
def option_of_one_endpoint(folder: Path) -> dict[str, Any]:
    return {"function_id": "report"}


@started.says("stores in SQLite only", 'write "sqlite:///path/to/endpoints.db"')
def database_of_another_kind(folder: Path) -> dict[str, Any]:
    return {"database": "postgresql://localhost/runs"}


@started.says("a durable database needs a file", "durable_endpoints.testing")
def database_in_memory(folder: Path) -> dict[str, Any]:
    return {"database": ":memory:"}


@started.says("is a folder: name a file in it")
def folder_as_a_database(folder: Path) -> dict[str, Any]:
    return {"database": str(folder)}


@started.says("its folder is one, and may be written")
def folder_that_is_a_file(folder: Path) -> dict[str, Any]:
    (folder / "file").touch()
    return {"database": str(folder / "file" / "runs.db")}


@started.says("cannot be made", "name another database (DURABLE_ENDPOINTS_DATABASE)")
def folder_that_cannot_be_made(folder: Path) -> dict[str, Any]:
    return {"database": "/proc/nowhere/runs.db"}


@started.says("it is not a SQLite database: move it away, or name another file")
def file_that_is_no_database(folder: Path) -> dict[str, Any]:
    (folder / "notes.txt").write_text("These are my notes.\n" * 100)
    return {"database": str(folder / "notes.txt")}


@started.says("signing_key=…: a key", "a key needs at least 16 characters", "openssl rand -hex 32")
def short_key(folder: Path) -> dict[str, Any]:
    return {"signing_key": "abc"}


@started.says("retention='a week'", 'write "30s"')
def setting_in_words(folder: Path) -> dict[str, Any]:
    return {"retention": "a week"}


@started.says("hooks=", "give a list of instances of Hook, [MyHook()]")
def hook_without_a_list(folder: Path) -> dict[str, Any]:
    return {"hooks": Hook()}


@started.says("hooks=", "give a list of instances of Hook, [MyHook()]")
def hook_that_is_a_class(folder: Path) -> dict[str, Any]:
    return {"hooks": [Hook]}


@started.says("engine='sqlite:///runs.db' is no engine", "database=")
def database_as_an_engine(folder: Path) -> dict[str, Any]:
    return {"engine": "sqlite:///runs.db"}


@started.says("database='sqlite://runs.db'", "write three slashes", '"sqlite:///path/to')
def database_with_two_slashes(folder: Path) -> dict[str, Any]:
    return {"database": "sqlite://runs.db"}


@started.says("max_steps='ten'", "give a whole number of at least 1")
def number_in_words(folder: Path) -> dict[str, Any]:
    return {"max_steps": "ten"}


class Misspelt(Hook):
    async def before_stp(self, run: RunInfo, step: StepInfo) -> None: ...


class Plain(Hook):
    def before_run(self, run: RunInfo) -> None: ...  # type: ignore[override]


class Awaited(Hook):
    async def encode(self, where: StepData, data: bytes) -> bytes:  # type: ignore[override]
        return data


@started.says("Misspelt.before_stp is never called", "did you mean before_step?")
def hook_with_a_typing_error(folder: Path) -> dict[str, Any]:
    return {"hooks": [Misspelt()]}


@started.says("Plain.before_run is awaited", "write `async def before_run`")
def hook_that_is_a_plain_def(folder: Path) -> dict[str, Any]:
    return {"hooks": [Plain()]}


@started.says("Awaited.encode is called on the event loop", "write a plain `def`")
def encoding_hook_that_is_async(folder: Path) -> dict[str, Any]:
    return {"hooks": [Awaited()]}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("database", "postgres://admin:hunter2@db/runs"),
        ("server_url", "https://admin:hunter2@durable.example"),
        ("sealing_key", "hunter2"),
    ],
)
def test_no_message_has_a_secret(name: str, value: str, caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    settings: Any = {name: value}
    app.add_middleware(DurableEndpointsMiddleware, **settings)
    with pytest.raises(DurableEndpointsError) as raised, TestClient(app):
        pass
    assert "hunter2" not in str(raised.value) + caplog.text


@pytest.mark.parametrize("mistake", started.mistakes, ids=str)
def test_a_mistake_fails_the_start(mistake: Mistake, tmp_path: Path) -> None:
    app = FastAPI()
    app.add_middleware(DurableEndpointsMiddleware, **mistake.code(tmp_path))
    with pytest.raises(DurableEndpointsError) as raised, TestClient(app):
        pass
    assert_told(mistake, str(raised.value))


def test_a_variable_that_is_wrong_fails_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURABLE_ENDPOINTS_RETRY_BASE", "soon")
    app = FastAPI()
    app.add_middleware(DurableEndpointsMiddleware)
    with (
        pytest.raises(DurableEndpointsError, match=r"DURABLE_ENDPOINTS_RETRY_BASE='soon'.*write"),
        TestClient(app),
    ):
        pass


# What a request shows


@requested.says("idempotency_scope gave None", "who the caller is")
def caller_who_is_nobody(engine: VirtualEngine) -> Starlette:
    def caller(request: Request) -> str:
        return request.headers.get("x-account")  # type: ignore[return-value]

    def key(request: Request) -> str:
        return "order-7"

    app = Starlette(
        routes=[Route("/", endpoint(idempotency_scope=caller, idempotency_key=key)(handler))]
    )
    app.add_middleware(DurableEndpointsMiddleware, engine=engine)
    return app


@requested.says("Texts.encode failed on the result of 'a'", "it gave a str, and not bytes")
def encoding_hook_that_gives_a_text(engine: VirtualEngine) -> Starlette:
    class Texts(Hook):
        def encode(self, where: StepData, data: bytes) -> bytes:
            return "…"  # type: ignore[return-value]

    app = Starlette(routes=[Route("/", endpoint(handler))])
    app.add_middleware(DurableEndpointsMiddleware, engine=engine, hooks=[Texts()])
    return app


@requested.says(
    "has no DurableEndpointsMiddleware", "app.add_middleware(DurableEndpointsMiddleware)"
)
def no_middleware(engine: VirtualEngine) -> Starlette:
    @endpoint  # here
    async def report(request: Request) -> Response:
        return PlainTextResponse("ok")

    return Starlette(routes=[Route("/", report)])


@requested.says("this request's handler is not decorated", "directly above its `def`")
def no_decorator(engine: VirtualEngine) -> Starlette:
    async def report(request: Request) -> Response:
        await step.run("a", work)  # here
        return PlainTextResponse("ok")

    return one(engine, report)


@requested.says("is not decorated", "@endpoint directly above its `def`, below the route's")
def decorators_in_the_wrong_order(engine: VirtualEngine) -> Starlette:
    app = fast(engine)

    @endpoint
    @app.get("/")
    async def report() -> int:
        return await step.run("a", work)  # here

    return app


@requested.says("in a dependency, use remember()")
def step_in_a_dependency(engine: VirtualEngine) -> Starlette:
    app = fast(engine)

    async def user() -> int:
        return await step.run("user", work)  # here

    @app.get("/")
    @endpoint
    async def report(user: int = Depends(user)) -> int:
        return user

    return app


@requested.says("was called in a request that is not for a decorated handler", "decorate that one")
def endpoint_called_by_another_handler(engine: VirtualEngine) -> Starlette:
    @endpoint  # here
    async def report(request: Request) -> Response:
        return PlainTextResponse("ok")

    async def other(request: Request) -> Response:
        return await report(request)

    return one(engine, other)


@pytest.mark.anyio
@pytest.mark.parametrize("mistake", requested.mistakes, ids=str)
async def test_a_mistake_fails_the_request(engine: VirtualEngine, mistake: Mistake) -> None:
    errors: list[Exception] = []

    async def on_error(request: Request, error: Exception) -> Response:
        errors.append(error)
        return PlainTextResponse("sorry", 500)

    app = mistake.code(engine)
    app.add_exception_handler(500, on_error)
    async with engine.client(app) as client:
        assert (await client.get("/")).text == "sorry"
    assert_told(mistake, str(errors[0]))


@pytest.mark.anyio
async def test_a_proxy_without_the_middleware_says_so_to_whoever_waits() -> None:
    app = FastAPI()
    app.mount("/wait", endpoint_proxy())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
        answer = await client.get("/wait/?runId=1&token=2")
    assert answer.status_code == 500
    assert "app.add_middleware(DurableEndpointsMiddleware)" in answer.json()["detail"]


def test_a_websocket_handler_without_annotations() -> None:
    async def chat(socket):  # type: ignore[no-untyped-def]
        raise AssertionError("never reached")

    app = Starlette(routes=[WebSocketRoute("/", endpoint(chat))])
    app.add_middleware(DurableEndpointsMiddleware, engine=VirtualEngine())
    with (
        TestClient(app) as client,
        pytest.raises(DurableEndpointsError, match=r"WebSocket handler[^$]*HTTP endpoint"),
        client.websocket_connect("/"),
    ):
        pass


@pytest.mark.anyio
async def test_a_key_for_another_request(engine: VirtualEngine) -> None:
    key = {"Idempotency-Key": "order-7"}
    async with engine.client(one(engine, endpoint(handler))) as client:
        await client.post("/", content=b"1", headers=key)
        answer = await client.post("/", content=b"2", headers=key)
    assert answer.status_code == 422
    assert "another method, path, query or body. Use a new key" in answer.json()["detail"]


@pytest.mark.anyio
async def test_catching_everything_around_a_wait_is_told(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        try:
            await step.sleep("nap", "1h")
        except BaseException:
            pass
        return PlainTextResponse("too early")

    async with engine.client(one(engine, handler)) as client:
        assert (await client.get("/")).status_code == 303
    assert f"{__file__}:" in caplog.text
    assert "Catch Exception rather than BaseException" in caplog.text


@pytest.mark.anyio
async def test_a_hook_that_loses_the_result_is_told(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    class Loses(Hook):
        async def around_step(self, run: RunInfo, step: StepInfo, call: Call) -> Any:
            await call()

    async with engine.client(one(engine, endpoint(handler), hooks=[Loses()])) as client:
        assert (await client.get("/")).text == "ok"
    assert "Loses.around_step returned None" in caplog.text
    assert "write `return await call()`" in caplog.text


@pytest.mark.anyio
async def test_a_hook_that_fails_is_named(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    class Breaks(Hook):
        async def before_run(self, run: RunInfo) -> None:
            raise ValueError("no span")

    async with engine.client(one(engine, endpoint(handler), hooks=[Breaks()])) as client:
        assert (await client.get("/")).text == "ok"
    assert "Breaks.before_run failed; the run goes on" in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize("fails", ["step", "handler"])
async def test_a_failure_that_is_tried_again_is_told_with_its_line(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    def broken() -> None:
        raise RuntimeError("card reader offline")

    @endpoint
    async def handler(request: Request) -> Response:
        if fails == "step":
            await step.run("charge", broken)
        broken()
        return PlainTextResponse("never")

    async with engine.client(one(engine, handler)) as client:
        assert (await client.get("/")).status_code == 303
    place = f"{__file__}:{broken.__code__.co_firstlineno + 1}, in broken"
    assert f"RuntimeError: card reader offline (at {place}); try 1 of 4" in caplog.text


@pytest.mark.anyio
async def test_an_event_with_nowhere_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURABLE_ENDPOINTS_DATABASE", str(tmp_path / "none.db"))
    with pytest.raises(DurableEndpointsError, match="DURABLE_ENDPOINTS_DATABASE"):
        await send_event("order/paid")


@pytest.mark.anyio
async def test_a_url_that_is_none() -> None:
    with pytest.raises(httpx.UnsupportedProtocol, match="missing an 'http://' or 'https://'"):
        await fetch_with_stream("/report")


CLIENT_MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "callback with a typing error": ({"on_dta": print}, r"'on_dta'.*did you mean 'on_data'\?"),
    "option of httpx": ({"timeout": 5}, r"unknown option 'timeout'.*give_up_after"),
    "callback that is none": ({"on_data": "text"}, r"the callback for Chunk is 'text'"),
    "patience in words": ({"give_up_after": "5s"}, r"give_up_after='5s': give seconds"),
    "key of other letters": ({"idempotency_key": "ä"}, r"give a printable ASCII text"),
}


@pytest.mark.anyio
@pytest.mark.parametrize(("options", "says"), CLIENT_MISTAKES.values(), ids=list(CLIENT_MISTAKES))
async def test_a_client_given_what_it_does_not_take(options: dict[str, Any], says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        await fetch_with_stream("http://localhost:1/", **options)
    with pytest.raises((TypeError, ValueError), match=says):
        fetch_with_stream_sync("http://localhost:1/", **options)


@pytest.mark.anyio
async def test_a_client_of_the_other_kind() -> None:
    wrong: Any = httpx.Client()
    with wrong, pytest.raises(TypeError, match=r"blocks?: give an httpx.AsyncClient, or .*_sync"):
        await fetch_with_stream("http://localhost:1/", client=wrong)
    async with httpx.AsyncClient() as other:
        awaited: Any = other
        with pytest.raises(TypeError, match=r"give an httpx.Client, or .*no _sync"):
            fetch_with_stream_sync("http://localhost:1/", client=awaited)


@pytest.mark.anyio
async def test_a_url_without_a_durable_endpoint_gives_its_own_answer(engine: VirtualEngine) -> None:
    async def page(request: Request) -> Response:
        return PlainTextResponse("<html>", 404, media_type="text/html")

    async with engine.client(one(engine, page)) as client:
        response = await fetch_with_stream("http://testserver/", client=client)
    assert (response.status_code, response.text) == (404, "<html>")
