"""`step.fetch` against a real HTTP server: what is remembered, tried again, and told."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import httpx
import orjson
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from durable_endpoints import (
    FetchError,
    LimitError,
    NonRetriableError,
    StepError,
    UsageError,
    endpoint,
    step,
)
from durable_endpoints.protocol.step_ids import hash_name
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.client.server import Asked, Said, answer, in_turn, serving
from tests.durable_endpoints.helpers import follow, one, run_id_of

pytestmark = pytest.mark.anyio
OK = answer(200, b"fine", "Content-Type: text/plain")


def fetching(*args: Any, retries: int = 1, **options: Any) -> Callable[[Request], Any]:
    """A handler that fetches, and tells what came of it."""

    @endpoint(retries=retries)
    async def handler(request: Request) -> Response:
        try:
            response = await step.fetch("call", *args, **options)
        except StepError as error:
            return JSONResponse({"name": error.name, "message": error.message})
        return JSONResponse([response.status_code, response.text])

    return handler


async def outcome(engine: VirtualEngine, handler: Callable[[Request], Any]) -> Any:
    """What the handler tells, after however many tries."""
    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        if response.status_code == 303:
            response = await follow(engine, client, response.headers["location"], "1h")
        return response.json()


async def test_a_response_is_remembered_as_the_first_execution_saw_it(
    engine: VirtualEngine,
) -> None:
    body = gzip.compress(b'{"n": 1}')
    headers = [
        "Content-Type: application/json",
        "Content-Encoding: gzip",
        "Keep-Alive: timeout=5",
        "Set-Cookie: a=1",
        "Set-Cookie: b=2",
    ]
    seen: list[Any] = []

    @endpoint
    async def handler(request: Request) -> Response:
        url = server.url.replace("//", "//me:secret@") + "/x%20y?key=secret"
        found = await step.fetch("call", "GET", url, headers={"X-Own": "1"})
        found.raise_for_status()
        binary = await step.fetch("binary", "GET", f"{server.url}/binary")
        for each in (found, binary):
            seen.append((each.status_code, each.headers.multi_items(), each.content, str(each.url)))
        await step.sleep("nap", "1m")
        return JSONResponse(found.json())

    def script(asked: Asked) -> bytes:
        return answer(200, b"\xff\x00") if "binary" in asked.path else answer(201, body, *headers)

    with serving(script) as server:
        async with engine.client(one(engine, handler)) as client:
            response = await client.get("/")
            told = await follow(engine, client, response.headers["location"], "1m")
            assert told.json() == {"n": 1}
            memo = await engine.memo(run_id_of(response))
    assert [asked.path for asked in server.asked] == ["/x%20y?key=secret", "/binary"]
    assert server.asked[0].headers["x-own"] == "1"
    assert server.asked[0].headers["authorization"].startswith("Basic ")
    assert seen[:2] == seen[2:]
    assert seen[0][1:] == (
        [
            ("content-type", "application/json"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("content-length", "8"),
        ],
        b'{"n": 1}',
        f"{server.url}/x%20y",
    )
    assert seen[1][2] == b"\xff\x00"
    assert "secret" not in str(memo)


async def test_every_way_of_sending_a_body(engine: VirtualEngine) -> None:
    with serving(in_turn(OK)) as server:

        @endpoint
        async def handler(request: Request) -> Response:
            url = server.url
            await step.fetch("json", "POST", url, json={"n": 1}, params={"q": ["a", "b"]})
            await step.fetch("form", "PUT", url, data={"a": "ü"})
            await step.fetch("bytes", "PUT", httpx.URL(url), content=b"raw")
            return PlainTextResponse("done")

        async with engine.client(one(engine, handler)) as client:
            assert (await client.get("/")).text == "done"
    first, second, third = server.asked
    assert (first.path, orjson.loads(first.body)) == ("/?q=a&q=b", {"n": 1})
    assert second.body == b"a=%C3%BC"
    assert (third.method, third.body) == ("PUT", b"raw")


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 507])
async def test_a_status_that_says_later_is_tried_again(engine: VirtualEngine, status: int) -> None:
    with serving(in_turn(answer(status), OK)) as server:
        assert await outcome(engine, fetching("GET", server.url)) == [200, "fine"]
        assert len(server.asked) == 2


@pytest.mark.parametrize("status", [204, 304, 400, 401, 404, 409, 422])
async def test_any_other_status_is_a_result(engine: VirtualEngine, status: int) -> None:
    with serving(in_turn(answer(status), OK)) as server:
        assert await outcome(engine, fetching("GET", server.url)) == [status, ""]
        assert len(server.asked) == 1


async def test_an_error_status_can_be_raised_and_shows_no_secrets(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        response = await step.fetch("call", "GET", f"{server.url}/users?token=secret")
        with pytest.raises(httpx.HTTPStatusError) as caught:
            response.raise_for_status()
        return JSONResponse(str(caught.value))

    with serving(in_turn(answer(404, b"nobody"))) as server:
        told = await outcome(engine, handler)
    assert "404" in told
    assert f"{server.url}/users'" in told
    assert "secret" not in told


async def test_connections_that_fail_are_tried_again(engine: VirtualEngine) -> None:
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"
    script = in_turn(Said(b"", is_reset=True), cut, b"nonsense\r\n\r\n", OK)
    with serving(script) as server:
        assert await outcome(engine, fetching("GET", server.url, retries=3)) == [200, "fine"]


async def test_the_last_failure_is_told_without_secrets(engine: VirtualEngine) -> None:
    said = answer(503, b"the  shop\n is \x1b[2J closed " + b"x" * 1_000, "Retry-After: 1")
    with serving(in_turn(said)) as server:
        url = server.url.replace("//", "//me:secret@") + "/a?key=secret#secret"
        told = await outcome(engine, fetching("POST", url))
        assert told["name"] == "FetchError"
        start = f"POST {server.url}/a answered 503 X: the shop is \ufffd[2J closed x"
        assert told["message"].startswith(start)
        assert len(told["message"]) < 500
        url = server.url.replace("//", "//me:secret@")
    told = await outcome(VirtualEngine(), fetching("GET", f"{url}/a?key=secret"))
    assert told["name"] == "FetchError"
    assert told["message"].startswith(f"GET {server.url}/a: ConnectError: ")
    assert "secret" not in str(told)


@pytest.mark.parametrize("blocking", [False, True])
async def test_of_an_answer_that_says_later_only_the_beginning_matters(blocking: bool) -> None:
    engine = VirtualEngine(max_result=10_000)
    head = b"HTTP/1.1 503 X\r\nRetry-After: 90\r\nContent-Length: 100000\r\n\r\n"

    @endpoint
    def handler(request: Request) -> Response:
        return PlainTextResponse(step.sync.fetch("call", "GET", server.url).text)

    script = in_turn(head + b"x" * 100_000, Said(head + b"cut", is_reset=True), OK)
    with serving(script) as server:
        fetches = handler if blocking else fetching("GET", server.url, retries=3)
        async with engine.client(one(engine, fetches)) as client:
            response = await client.get("/")
            for _ in range(2):
                assert (await engine.store.next_due() or 0) - engine.clock.now() == 90_000
                await engine.advance("90s")
            assert "fine" in (await client.get(response.headers["location"])).text


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("begins", [False, True])
async def test_a_try_takes_no_longer_than_its_timeout(
    engine: VirtualEngine, blocking: bool, begins: bool
) -> None:
    over = threading.Event()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
    silent = Said(head + b"h" if begins else b"", until=over)

    @endpoint(retries=0)
    def handler(request: Request) -> Response:
        with pytest.raises(StepError) as caught:
            step.sync.options(timeout="100ms").fetch("call", "GET", server.url)
        return JSONResponse({"name": caught.value.name, "message": caught.value.message})

    with serving(in_turn(silent)) as server:
        asking = fetching("GET", server.url, timeout="100ms", retries=0)
        told = await outcome(engine, handler if blocking else asking)
        over.set()
    assert told["name"] == "FetchError"
    assert told["message"].startswith(f"GET {server.url}/: ")
    assert "0.1 s" in told["message"]


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        (["Retry-After: 90"], 90_000),
        (["retry-after-ms: 1500", "Retry-After: 90"], 1_500),
        (
            [
                f"Retry-After: {formatdate(1_000_060, usegmt=True)}",
                f"Date: {formatdate(1_000_000, usegmt=True)}",
            ],
            60_000,
        ),
        ([f"Retry-After: {formatdate(1_767_225_600 + 120, usegmt=True)}"], 120_000),
        (["Retry-After: " + "9" * 30], 366 * 86_400_000),
    ],
)
async def test_a_server_says_when_to_try_again(
    engine: VirtualEngine, headers: list[str], wait: int
) -> None:
    with serving(in_turn(answer(429, b"", *headers), OK)) as server:
        handler = fetching("GET", server.url)
        async with engine.client(one(engine, handler)) as client:
            await client.get("/")
            assert (await engine.store.next_due() or 0) - engine.clock.now() == wait


@pytest.mark.parametrize("value", ["-5", "soon", "1.5", "0", ""])
async def test_nonsense_in_retry_after_leaves_it_to_the_back_off(value: str) -> None:
    engine = VirtualEngine(retry_base="10s")
    with serving(in_turn(answer(429, b"", f"Retry-After: {value}"), OK)) as server:
        async with engine.client(one(engine, fetching("GET", server.url))) as client:
            await client.get("/")
            wait = (await engine.store.next_due() or 0) - engine.clock.now()
            assert 8_000 <= wait <= 12_000


async def test_a_repeated_post_carries_the_same_key(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        url = server.url
        await step.fetch("pay", "post", url)
        await step.fetch("change", "PATCH", url, headers={"idempotency-key": "mine"})
        await step.fetch("look", "GET", url)
        await step.fetch("put", "PUT", url)
        return PlainTextResponse("done")

    with serving(in_turn(answer(500), OK)) as server:
        async with engine.client(one(engine, handler)) as client:
            response = await client.get("/")
            await follow(engine, client, response.headers["location"], "1m")
    key = f"{run_id_of(response)}-{hash_name('pay')}"
    keys = [asked.headers.get("idempotency-key") for asked in server.asked]
    assert keys == [key, key, "mine", None, None]


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_a_redirect_to_another_origin_gets_none_of_the_secrets(
    engine: VirtualEngine, sync: bool
) -> None:
    headers = {"X-Api-Key": "secret", "Authorization": "secret", "Accept": "text/plain"}

    @endpoint
    async def handler(request: Request) -> Response:
        response = await step.fetch("call", "POST", f"{first.url}/a", headers=headers)
        return PlainTextResponse(response.text)

    @endpoint
    def plain(request: Request) -> Response:
        response = step.sync.fetch("call", "POST", f"{first.url}/a", headers=headers)
        return PlainTextResponse(response.text)

    with serving(lambda asked: OK) as other:

        def script(asked: Asked) -> bytes:
            return answer(307, b"", f"Location: {'/b' if asked.path == '/a' else other.url}")

        with serving(script) as first:
            async with engine.client(one(engine, plain if sync else handler)) as client:
                assert (await client.get("/")).text == "fine"
    own, foreign = first.asked[1].headers, other.asked[0].headers
    assert (own["x-api-key"], foreign["accept"]) == ("secret", "text/plain")
    assert "idempotency-key" in own
    assert not foreign.keys() & {"x-api-key", "authorization", "idempotency-key"}


def redirecting(asked: Asked) -> bytes:
    return OK if asked.path == "/there" else answer(302, b"", "Location: /there")


async def test_redirects_are_followed_unless_the_client_is_the_users_own(
    engine: VirtualEngine,
) -> None:
    urls: list[str] = []

    @endpoint
    async def handler(request: Request) -> Response:
        first = await step.fetch("a", "GET", f"{server.url}/here")
        async with httpx.AsyncClient(base_url=server.url, headers={"x-mine": "1"}) as own:
            second = await step.fetch("b", "GET", "/here", client=own)
            assert not own.is_closed
        urls.extend([str(first.url), str(second.url)])
        return JSONResponse([first.status_code, second.status_code])

    with serving(redirecting) as server:
        assert await outcome(engine, handler) == [200, 302]
    assert urls == [f"{server.url}/there", f"{server.url}/here"]
    assert server.asked[-1].headers["x-mine"] == "1"


async def test_plain_handlers_fetch_too(engine: VirtualEngine) -> None:
    @endpoint
    def handler(request: Request) -> Response:
        response = step.sync.fetch("call", "POST", server.url, json=[1])
        with httpx.Client(base_url=server.url) as own:
            other = step.sync.options(retries=0).fetch("own", "GET", "/x", client=own)
        return JSONResponse([response.text, other.text])

    with serving(in_turn(answer(503), OK)) as server:
        assert await outcome(engine, handler) == ["fine", "fine"]
    assert [asked.path for asked in server.asked] == ["/", "/", "/x"]
    assert server.asked[0].headers["idempotency-key"] == server.asked[1].headers["idempotency-key"]


@pytest.mark.parametrize("size", [2_000, 10_000_000])
async def test_a_response_that_is_too_large_is_an_error_that_says_what_to_do(size: int) -> None:
    engine = VirtualEngine(max_result=1_000)
    caught: list[LimitError] = []

    @endpoint
    async def handler(request: Request) -> Response:
        try:
            await step.fetch("call", "GET", f"{server.url}?key=secret")
        except LimitError as error:
            caught.append(error)
        return PlainTextResponse("done")

    with serving(in_turn(answer(200, b"x" * size))) as server:
        async with engine.client(one(engine, handler)) as client:
            assert (await client.get("/")).text == "done"
        assert len(server.asked) == 1
    message = str(caught[0])
    assert f"GET {server.url}/ answers with more than 1,000 bytes" in message
    assert "max_result" in message
    assert "step.run of your own" in message
    assert "secret" not in message


@pytest.mark.parametrize("url", ["ftp://example.com/x", "https://exa\x00mple.com", "http://a:b/"])
async def test_a_url_that_cannot_work_is_not_tried_again(engine: VirtualEngine, url: str) -> None:
    async with engine.client(one(engine, fetching("GET", url))) as client:
        told = (await client.get("/")).json()
    assert told["name"] == "NonRetriableError"


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "relative": ({"url": "/x"}, r"'/x' is no whole URL: begin it with https://"),
    "no scheme": ({"url": "example.com/x"}, "no whole URL"),
    "not JSON": ({"json": {1, 2}}, "not JSON serializable"),
    "bad header": ({"headers": {"x": None}}, "cannot be made"),
    "iterator": ({"content": iter([b""])}, "give bytes or a text"),
    "timeout": ({"timeout": "0s"}, "longer than nothing"),
    "duration": ({"timeout": "soon"}, "not a duration"),
    "client": ({"client": httpx.Client}, r"give httpx\.AsyncClient"),
}


@pytest.mark.parametrize("kind", MISTAKES)
async def test_mistakes_are_told_and_not_tried_again(engine: VirtualEngine, kind: str) -> None:
    options, message = MISTAKES[kind]

    @endpoint
    async def handler(request: Request) -> Response:
        with pytest.raises(UsageError, match=message):
            await step.fetch("call", "GET", **{"url": "http://localhost:1/", **options})
        return PlainTextResponse("told")

    async with engine.client(one(engine, handler)) as client:
        assert (await client.get("/")).text == "told"


async def test_outside_a_request_it_makes_the_call_once() -> None:
    with serving(in_turn(OK, answer(503, b"down"), answer(500))) as server:
        response = await step.fetch("call", "POST", f"{server.url}/a?key=secret", json=1)
        assert (response.text, str(response.url)) == ("fine", f"{server.url}/a")
        assert "idempotency-key" not in server.asked[0].headers
        with pytest.raises(StepError, match=r"/a answered 503 X: down") as caught:
            await step.fetch("call", "GET", f"{server.url}/a")
        assert isinstance(caught.value.__cause__, FetchError)
        with pytest.raises(StepError, match=r"answered 500"):
            step.sync.fetch("call", "GET", server.url)
    with pytest.raises(StepError) as refused:
        await step.fetch("call", "GET", "gopher://x/")
    assert isinstance(refused.value.__cause__, NonRetriableError)


def test_a_server_that_fetches_nothing_imports_no_http_client() -> None:
    code = "import sys, durable_endpoints; print('httpx' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
