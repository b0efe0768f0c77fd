from __future__ import annotations

import asyncio
import gzip
import ssl
import threading
from base64 import b64encode
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import httpx
import pytest

from durable_endpoints.client import (
    Chunk,
    Commit,
    Log,
    Metadata,
    Pacing,
    Progress,
    Rollback,
    StreamError,
    Transcript,
    cancel_run,
    cancel_run_sync,
    fetch_with_stream,
    fetch_with_stream_sync,
    open_stream,
)
from durable_endpoints.client.errors import is_lost_connection
from tests.durable_endpoints.client.forms import FAST, Form, close
from tests.durable_endpoints.client.server import (
    HEARTBEAT,
    Asked,
    Said,
    answer,
    chunk,
    commit,
    in_turn,
    log_line,
    metadata,
    progress,
    response,
    rollback,
    serving,
    stream,
)

pytestmark = pytest.mark.anyio

SHORT = stream(metadata(), chunk("x", 1), response(2))


async def test_a_stream_and_its_response(form: Form, client: Any) -> None:
    with serving(lambda asked: SHORT) as server:
        read = await form.read(f"{server.url}/report", client=client, params={"q": "ü"})
        assert read.events == [Metadata("R"), Chunk("x", None, "1")]
        assert isinstance(read.response, form.library.Response)
        assert read.response.text == "done"
        assert str(read.response.url) == f"{server.url}/report?q=%C3%BC"
        assert read.response.raise_for_status() is read.response
        assert read.run_id == "R"
        assert read.run_url == f"{server.url}/wait?runId=R&token=T"
        (asked,) = server.asked
        assert asked.headers["accept"] == "text/event-stream"
        assert asked.headers["durable-client"].startswith("durable-endpoints-python/")
        assert len(asked.headers["idempotency-key"]) >= 32


async def test_callbacks_are_told_in_order(form: Form, client: Any) -> None:
    told: list[Any] = []
    log = [
        chunk("x", 1, "A"),
        rollback("A", 2),
        chunk("y", 3, "A"),
        progress({"current": 1, "total": 2.5, "message": "half"}, 4, "A"),
        commit("A", 5),
        log_line({"level": "info", "message": "line", "data": {"n": 1}, "time": 9}, 6),
        response(7),
    ]
    with serving(in_turn(stream(metadata(), *log[:2], end=False), stream(*log[2:]))) as server:
        got = await form.fetch(
            server.url,
            client=client,
            on_metadata=told.append,
            on_data=told.append,
            on_commit=told.append,
            on_rollback=told.append,
            on_progress=told.append,
            on_log=told.append,
        )
    assert got.text == "done"
    assert told == [
        Metadata("R"),
        Chunk("x", "A", "1"),
        Rollback("A", "2"),
        Chunk("y", "A", "3"),
        Progress(1, 2.5, "half", "A", "4"),
        Commit("A", "5"),
        Log("info", "line", {"n": 1}, 9, None, "6"),
    ]


async def test_asynchronous_callbacks_are_awaited_one_by_one() -> None:
    told: list[str] = []

    async def tell(event: Chunk) -> None:
        await asyncio.sleep(0)
        told.append(event.data)

    with serving(lambda asked: stream(metadata(), chunk("x", 1), chunk("y", 2), response(3))) as s:
        await fetch_with_stream(s.url, on_data=tell)
        assert told == ["x", "y"]
        with pytest.raises(TypeError, match="async"):
            fetch_with_stream_sync(s.url, on_data=tell)


async def test_a_client_is_made_where_none_is_given() -> None:
    with serving(in_turn(stream(metadata(), end=False), SHORT, SHORT)) as server:
        transcript = Transcript()
        got = await fetch_with_stream(server.url, on_data=transcript.feed, pacing=FAST)
        assert (got.text, transcript.text) == ("done", "x")
        got = await asyncio.to_thread(fetch_with_stream_sync, server.url, pacing=FAST)
        assert got.text == "done"


async def test_the_clients_own_settings_hold(form: Form) -> None:
    with serving(lambda asked: SHORT) as server:
        mine = form.make_client(
            base_url=server.url,
            headers={"X-Mine": "1", "Accept": "application/json"},
            params={"p": "1"},
            cookies={"c": "1"},
            auth=("me", "secret"),
        )
        await form.read("/report", client=mine, headers={"Idempotency-Key": "theirs"})
        await form.read("/report", client=mine, idempotency_key="mine")
        assert not mine.is_closed
        await close(mine)
        first, second = server.asked
        assert first.path == "/report?p=1"
        assert first.headers["accept"] == "text/event-stream, application/json"
        assert first.headers["cookie"] == "c=1"
        assert first.headers["authorization"].startswith("Basic ")
        assert first.headers["x-mine"] == "1"
        assert first.headers["idempotency-key"] == "theirs"
        assert second.headers["idempotency-key"] == "mine"


async def test_each_call_has_a_key_of_its_own(form: Form, client: Any) -> None:
    with serving(lambda asked: SHORT) as server:
        for _ in range(3):
            await form.read(server.url, client=client)
        assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 3


async def test_responses_come_as_they_were(form: Form, client: Any) -> None:
    binary = bytes(range(256))
    packed = gzip.compress(b"packed")
    cookies = [["set-cookie", "a=1"], ["set-cookie", "b=2"], ["x-latin", "\xe9"]]
    cases: list[tuple[dict[str, Any], int, bytes]] = [
        ({"body": "", "status": 204, "headers": {}}, 204, b""),
        ({"body": "", "status": 304, "headers": {"etag": '"x"'}}, 304, b""),
        ({"bodyBase64": b64encode(binary).decode()}, 200, binary),
        ({"body": "nein", "status": 418, "word": "failed"}, 418, b"nein"),
        ({"body": "", "status": 302, "headers": {"location": "/elsewhere"}}, 302, b""),
        ({"body": "ok", "headerList": cookies}, 200, b"ok"),
        (
            {"bodyBase64": b64encode(packed).decode(), "headers": {"content-encoding": "gzip"}},
            200,
            b"packed",
        ),
    ]
    for given, status, body in cases:
        with serving(lambda asked, r=given: stream(metadata(), response(1, **r))) as server:
            got = (await form.read(server.url, client=client)).response
            assert (got.status_code, got.content) == (status, body)
            expected = given.get("headerList") or given.get("headers", {"x-own": "yes"}).items()
            assert got.headers.multi_items() == [tuple(pair) for pair in expected]


async def test_cookies_are_kept_as_from_any_response(form: Form, client: Any) -> None:
    def script(asked: Asked) -> bytes:
        if asked.path == "/away":
            return answer(303, b"", f"Location: http://localhost:{port}/")
        pairs = [["set-cookie", f"from={asked.headers['host'].partition(':')[0]}"]]
        return stream(metadata(), response(1, headerList=pairs))

    with serving(script) as server:
        port = server.url.rpartition(":")[2]
        await form.read(f"{server.url}/away", client=client)
        assert dict(client.cookies) == {}  # another origin's, which speaks for itself only
        await form.read(server.url, client=client)
        assert dict(client.cookies) == {"from": "127.0.0.1"}


async def test_what_is_no_stream_is_returned(form: Form, client: Any) -> None:
    said = answer(422, b'{"detail":1}', "Content-Type: application/json", "Set-Cookie: a=1")
    with serving(lambda asked: said) as server:
        read = await form.read(server.url, client=client)
        assert (read.response.status_code, read.response.json()) == (422, {"detail": 1})
        assert read.events == []
        assert read.run_url is None
        assert len(server.asked) == 1


async def test_the_redirect_to_where_one_waits(form: Form, client: Any) -> None:
    script = in_turn(
        answer(303, b"", "Location: /wait?runId=R&token=T", "Durable-Run-Status: running"),
        stream(metadata(), chunk("x", 1), end=False, url=None),
        stream(metadata(1), response(2), url=None),
    )
    with serving(script) as server:
        read = await form.read(
            f"{server.url}/report",
            client=client,
            method="POST",
            json={"a": 1},
            headers={"Authorization": "Bearer t"},
        )
        assert read.response.text == "done"
        assert read.events == [Metadata("R"), Chunk("x", None, "1")]
        first, second, third = server.asked
        assert (first.method, first.body.replace(b" ", b"")) == ("POST", b'{"a":1}')
        for asked in (second, third):
            assert (asked.method, asked.path, asked.body) == ("GET", "/wait?runId=R&token=T", b"")
            assert asked.headers["accept"] == "text/event-stream"
            assert asked.headers["authorization"] == "Bearer t"
            assert {"content-type", "content-length", "idempotency-key"}.isdisjoint(asked.headers)
        assert (second.headers.get("last-event-id"), third.headers["last-event-id"]) == (None, "1")


async def test_a_redirect_that_keeps_the_request(form: Form, client: Any) -> None:
    with serving(in_turn(answer(307, b"", "Location: /report/"), SHORT)) as server:
        await form.read(f"{server.url}/report", client=client, method="POST", content=b"body")
        first, second = server.asked
        assert (second.method, second.path, second.body) == ("POST", "/report/", b"body")
        assert second.headers["idempotency-key"] == first.headers["idempotency-key"]


async def test_credentials_do_not_go_to_another_origin(form: Form) -> None:
    with serving(lambda asked: SHORT) as other:
        location = f"Location: {other.url}/wait?runId=R&token=T"
        with serving(lambda asked: answer(303, b"", location)) as server:
            mine = form.make_client(auth=("me", "secret"), cookies={"c": "1"})
            await form.read(server.url, client=mine, headers={"X-Api-Key": "secret"})
            await close(mine)
        (asked,) = other.asked
        assert {"authorization", "cookie", "x-api-key"}.isdisjoint(asked.headers)
        assert asked.headers["accept"] == "text/event-stream"
        assert asked.headers["host"] == other.url.removeprefix("http://")


async def test_it_waits_out_a_restart(form: Form, client: Any) -> None:
    script = in_turn(
        answer(503, b"no", "Retry-After: 1"),
        answer(502),
        stream(metadata(), chunk("x", 1)),
        answer(429),
        answer(504),
        Said(b"", is_reset=True),
        answer(503, b"{}", "Durable-Run-Id: R", "Durable-Run-Status: unavailable"),
        stream(metadata(1), response(2)),
    )
    with serving(script) as server:
        read = await form.read(server.url, client=client, method="POST")
        assert read.response.text == "done"
        assert read.events == [Metadata("R"), Chunk("x", None, "1")]
        methods = [asked.method for asked in server.asked]
        assert methods == ["POST"] * 3 + ["GET"] * 5


async def test_it_waits_before_it_asks_again(
    form: Form, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("durable_endpoints.client.stream.anyio.sleep", sleep)
    monkeypatch.setattr("durable_endpoints.client.blocking.time.sleep", waits.append)
    script = in_turn(
        Said(b"", is_reset=True),
        answer(503, b"", "Retry-After: 7"),
        stream(metadata(), chunk("x", 1), end=False),
        stream(metadata(1), chunk("y", 2)),
        stream(metadata(2), response(3)),
    )
    with serving(script) as server:
        await form.read(server.url, client=client, pacing=Pacing(random=lambda: 1.0))
    assert waits == [0.1, 7.0, 0.1]  # and none after an orderly end


async def test_a_server_that_is_not_there(form: Form, client: Any) -> None:
    with serving(lambda asked: SHORT) as server:
        pass
    with pytest.raises(form.library.ConnectError):
        await form.fetch(server.url, client=client, give_up_after=0.03)


async def test_the_last_answer_of_a_server_that_stays_away(form: Form, client: Any) -> None:
    with serving(lambda asked: answer(503, b"away")) as server:
        got = await form.fetch(server.url, client=client, give_up_after=0.03)
        assert (got.status_code, got.text) == (503, "away")
        assert len(server.asked) > 1


@pytest.mark.parametrize(
    "headers",
    [
        ["Durable-Run-Id: R", "Durable-Run-Status: parked", "Retry-After: 1"],
        ["Durable-Run-Id: R"],
        ["Durable-Step-Executed: charge"],
    ],
)
async def test_a_503_that_is_an_answer(form: Form, client: Any, headers: list[str]) -> None:
    script = in_turn(stream(metadata(), chunk("x", 1)), answer(503, b"{}", *headers))
    with serving(script) as server:
        read = await form.read(server.url, client=client)
        assert read.response.status_code == 503
        assert len(server.asked) == 2


async def test_the_callers_own_mistakes_are_not_repeated(form: Form, client: Any) -> None:
    for url in ("/relative", "ftp://127.0.0.1/x"):
        with pytest.raises(form.library.UnsupportedProtocol):
            await form.fetch(url, client=client)
    with serving(lambda asked: SHORT) as server, pytest.raises(form.library.LocalProtocolError):
        await form.fetch(server.url, client=client, headers={"X": "a\nb"})


def test_an_untrusted_certificate_stays_untrusted() -> None:
    error = httpx.ConnectError("tls")
    assert is_lost_connection(error)
    error.__cause__ = OSError()
    error.__cause__.__cause__ = ssl.SSLCertVerificationError()
    assert not is_lost_connection(error)
    assert not is_lost_connection(httpx.DecodingError("gzip"))


@pytest.mark.parametrize("patient", [True, False], ids=["client-timeout", "silence"])
async def test_a_silent_connection_is_dead(form: Form, patient: bool) -> None:
    """Whichever is shorter, the client's own read timeout or ours."""
    hang = threading.Event()
    script = in_turn(
        Said(stream(metadata(), chunk("x", 1), end=False), until=hang),
        stream(metadata(1), response(2)),
    )
    ours, theirs = (45.0, 0.05) if patient else (0.05, 45.0)
    pacing = Pacing(first_delay=0.0, longest_delay=0.0, silence=ours)
    mine = form.make_client(timeout=theirs)
    with serving(script) as server:
        read = await form.read(server.url, client=mine, pacing=pacing)
        assert read.response.text == "done"
        assert server.asked[1].headers["last-event-id"] == "1"
    await close(mine)


async def test_a_default_timeout_is_not_a_choice(form: Form, client: Any) -> None:
    """httpx's 5 s are shorter than the time between two heartbeats."""
    script = in_turn(stream(metadata(), chunk("x", 1), end=False), stream(metadata(1), response(2)))
    seen: list[float | None] = []

    def look(request: Any) -> None:
        seen.append(request.extensions["timeout"]["read"])

    async def look_later(request: Any) -> None:
        look(request)

    hook = look_later if form.is_async else look
    client.event_hooks = {"request": [hook]}
    with serving(script) as server:
        await form.read(server.url, client=client)
    assert seen == [90.0, 90.0]


async def test_a_slow_head_is_a_cut(form: Form, client: Any) -> None:
    hang = threading.Event()
    pacing = Pacing(first_delay=0.0, longest_delay=0.0, answer_within=0.05)
    with serving(in_turn(Said(b"", until=hang), SHORT)) as server:
        read = await form.read(server.url, client=client, pacing=pacing, method="POST")
        assert read.response.text == "done"
        keys = {asked.headers["idempotency-key"] for asked in server.asked}
        assert (len(server.asked), len(keys)) == (2, 1)


async def test_heartbeats_are_nothing_to_see(form: Form, client: Any) -> None:
    said = stream(HEARTBEAT, metadata(), HEARTBEAT * 3, chunk("x", 1), b":\n\n", response(2))
    with serving(lambda asked: said) as server:
        read = await form.read(server.url, client=client)
        assert read.events == [Metadata("R"), Chunk("x", None, "1")]


class Oops(Exception):
    pass


async def test_a_callback_that_raises_ends_the_call(form: Form, client: Any) -> None:
    def oops(event: Any) -> None:
        raise Oops

    held = Said(stream(metadata(), chunk("x", 1), end=False), until=threading.Event())
    for name in ("on_metadata", "on_data"):
        with serving(lambda asked: held) as server:
            with pytest.raises(Oops):
                await form.fetch(server.url, client=client, **{name: oops})
            assert server.left.wait(5)
            assert [asked.method for asked in server.asked] == ["GET"]


async def test_cancelling_the_call_closes_the_connection() -> None:
    held = Said(stream(metadata(), end=False), until=threading.Event())
    with serving(lambda asked: held) as server:
        begun = asyncio.Event()
        call = asyncio.create_task(
            fetch_with_stream(server.url, on_metadata=lambda event: begun.set())
        )
        await asyncio.wait_for(begun.wait(), 5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert server.left.wait(5)
        assert len(server.asked) == 1


async def test_cancelling_the_wait_for_one_event_loses_none() -> None:
    script = in_turn(
        Said(stream(metadata(), chunk("x", 1), end=False), until=threading.Event()),
        stream(metadata(1), chunk("y", 2), response(3)),
    )
    with serving(script) as server:
        async with open_stream(server.url, pacing=FAST) as opened:
            assert await anext(opened) == Metadata("R")
            assert await anext(opened) == Chunk("x", None, "1")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await anext(opened)
            assert [event async for event in opened] == [Chunk("y", None, "2")]
            assert opened.response.text == "done"


async def test_leaving_early_closes_the_connection_and_the_run_is_read_on_elsewhere(
    form: Form, client: Any
) -> None:
    log = [chunk("x", 1), chunk("y", 2), response(3)]

    def script(asked: Asked) -> Said | bytes:
        if asked.path == "/report":
            return Said(stream(metadata(), *log[:2], end=False), until=threading.Event())
        after = int(asked.headers["last-event-id"])
        return stream(metadata(after), *log[after:])

    with serving(script) as server:
        async with open_stream(f"{server.url}/report") as opened:
            async for event in opened:
                if isinstance(event, Chunk):
                    break
            with pytest.raises(StreamError, match="to its end"):
                _ = opened.response
        assert server.left.wait(5)
        assert opened.run_url is not None
        read = await form.read(opened.run_url, client=client, last_event_id=opened.last_event_id)
        assert read.events == [Metadata("R"), Chunk("y", None, "2")]
        assert read.response.text == "done"
        with pytest.raises(ValueError, match="GET"):
            await form.read(opened.run_url, client=client, last_event_id="1", method="POST")


async def test_bodies_that_can_be_read_once_are_sent_again(form: Form, client: Any) -> None:
    async def later() -> AsyncIterator[bytes]:
        yield b"a" * 70_000
        yield b"b"

    contents: list[Any] = [iter([b"a" * 70_000, b"b"]), BytesIO(b"a" * 70_000 + b"b")]
    for content in [*contents, later()] if form.is_async else contents:
        with serving(in_turn(stream(), answer(503), SHORT)) as server:
            await form.read(server.url, client=client, method="POST", content=content)
            assert [asked.body for asked in server.asked] == [b"a" * 70_000 + b"b"] * 3
            assert "transfer-encoding" not in server.asked[0].headers
    for wrong in [7, later()] if not form.is_async else [7]:
        with pytest.raises(TypeError, match="content"):
            await form.read("http://127.0.0.1:1", client=client, method="POST", content=wrong)


async def test_forms_and_files_are_sent_again_byte_for_byte(form: Form, client: Any) -> None:
    cases: list[dict[str, Any]] = [
        {"files": {"f": ("a.txt", BytesIO(b"content"), "text/plain")}, "data": {"k": "v"}},
        {"data": {"k": ["v", "ü"]}},
        {"json": {"k": "ü"}},
        {"content": "ü"},
    ]
    for options in cases:
        with serving(in_turn(stream(), SHORT)) as server:
            await form.read(server.url, client=client, method="PUT", **options)
            first, second = server.asked
            assert first == second
            assert first.body


async def test_a_stream_in_small_pieces_through_a_slow_wire(form: Form, client: Any) -> None:
    frames = b"".join([metadata(), chunk("Grüße 🎈", 1), response(2, "ñ")])
    said = stream(*(bytes([byte]) for byte in frames))
    with serving(lambda asked: said) as server:
        read = await form.read(server.url, client=client)
        assert read.events == [Metadata("R"), Chunk("Grüße 🎈", None, "1")]
        assert read.response.text == "ñ"


async def test_a_packed_stream(form: Form, client: Any) -> None:
    body = gzip.compress(metadata() + chunk("x", 1) + response(2))
    lines = ["Content-Type: text/event-stream", "Content-Encoding: gzip"]
    with serving(lambda asked: answer(200, body, *lines)) as server:
        read = await form.read(server.url, client=client)
        assert (read.response.text, len(read.events)) == ("done", 2)


async def test_nonsense_is_an_error_at_once(form: Form, client: Any) -> None:
    said = Said(stream(metadata(), b"event: inngest.stream\ndata: {\n\n"), until=threading.Event())
    with serving(lambda asked: said) as server:
        with pytest.raises(StreamError, match="makes no sense"):
            await form.fetch(server.url, client=client)
        assert server.left.wait(5)
        assert len(server.asked) == 1


async def test_cancelling_a_run() -> None:
    with serving(lambda asked: answer(200, b'{"status":"cancelled"}')) as server:
        url = f"{server.url}/wait?runId=R&token=T"
        async with httpx.AsyncClient() as client:
            answers = [await cancel_run(url), await cancel_run(url, client)]
        with httpx.Client() as client_sync:
            answers += [cancel_run_sync(url), cancel_run_sync(url, client_sync)]
        assert {got.json()["status"] for got in answers} == {"cancelled"}
        assert {(asked.method, asked.path) for asked in server.asked} == {
            ("DELETE", "/wait?runId=R&token=T")
        }
