"""Streams and unusual answers of runs on an Inngest server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi import Request
from starlette.responses import Response

from durable_endpoints import endpoint, fetch_with_stream, step, stream
from durable_endpoints.client import Chunk, Commit, Rollback
from tests.interop.inngest_server import InngestServer
from tests.interop.test_inngest_engine import application, client_of, counting, follow

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
async def inngest() -> AsyncIterator[InngestServer]:
    server = InngestServer()
    server.clock = 10
    async with server.serving():
        yield server


async def test_a_stream_reaches_its_client_before_and_after_the_switch(
    inngest: InngestServer,
) -> None:
    app, tries = application(inngest), []

    @app.get("/")
    @endpoint
    async def handler() -> Response:
        stream.push("hello")

        async def first() -> None:
            stream.push("one")

        await step.run("first", first)
        await step.sleep("rest", "3s")
        stream.push("between")

        async def second() -> str:
            tries.append("second")
            stream.push("two")
            if len(tries) < 2:
                raise ValueError("again")
            stream.push("three")
            return "done"

        return Response(await step.run("second", second), 201, {"x-a": "b"})

    seen: list[object] = []

    def see(event: Chunk | Commit | Rollback) -> None:
        seen.append(event.data if isinstance(event, Chunk) else type(event).__name__)

    async with client_of(app) as client:
        response = await fetch_with_stream(
            str(client.base_url), on_data=see, on_commit=see, on_rollback=see
        )
    assert (response.status_code, response.text, response.headers["x-a"]) == (201, "done", "b")
    assert seen[:4] == ["hello", "one", "Commit", "Commit"]
    assert seen[-4:] == ["two", "three", "Commit", "Commit"]
    assert seen.count("hello") == 1
    assert "Rollback" in seen


async def test_a_reader_may_come_before_the_server_has_a_record_of_the_run(
    inngest: InngestServer,
) -> None:
    app = application(inngest)
    inngest.is_late = True

    @app.get("/")
    @endpoint
    async def handler() -> str:
        await step.sleep("rest", "2s")
        return "done"

    async with client_of(app) as client:
        first = await client.get("/")
        events = {"accept": "text/event-stream"}
        answer = await client.get(first.headers["location"], headers=events)
    assert answer.status_code == 200
    assert '"body":"\\"done\\""' in answer.text


async def test_a_stream_without_a_switch_ends_with_the_response(inngest: InngestServer) -> None:
    app = application(inngest)

    @app.get("/")
    @endpoint
    async def handler() -> str:
        async def first() -> str:
            return await stream.pipe(["a", "b"])

        return await step.run("first", first)

    async with client_of(app) as client:
        answer = await client.get("/", headers={"accept": "text/event-stream"})
    names = [line[7:] for line in answer.text.splitlines() if line.startswith("event: ")]
    assert names == [
        "inngest.metadata",
        "inngest.stream",
        "inngest.stream",
        "inngest.commit",
        "inngest.redirect_info",
        "inngest.response",
    ]


async def test_any_body_and_any_headers_come_back_as_they_were(inngest: InngestServer) -> None:
    app = application(inngest)

    @app.post("/binary")
    @endpoint
    async def binary(request: Request) -> Response:
        body = await request.body()
        await step.sleep("rest", 0.1)
        return Response(bytes(range(256)) + body, 202, media_type="image/png")

    @app.get("/empty")
    @endpoint(omit_response_body=True)
    async def empty() -> Response:
        await step.sleep("rest", 0.1)
        return Response("a secret", headers={"x-note": "ä".encode("latin-1").decode("latin-1")})

    async with client_of(app) as client:
        answer = await follow(client, "POST", "/binary", content=b"\xff\x00")
        assert answer.content == bytes(range(256)) + b"\xff\x00"
        assert (answer.status_code, answer.headers["content-type"]) == (202, "image/png")
        answer = await follow(client, "GET", "/empty")
        assert answer.text == "a secret"
        assert answer.headers["x-note"] == "ä"
    assert "a secret" not in str([run.output for run in inngest.runs.values()])


async def test_an_idempotency_key_has_one_run_in_one_process(
    inngest: InngestServer, caplog: pytest.LogCaptureFixture
) -> None:
    app, done = application(inngest), []

    @app.post("/")
    @endpoint
    async def handler() -> str:
        return await step.run("a", counting(done, "a"))

    async with client_of(app) as client:
        key = {"idempotency-key": "k1"}
        first = await client.post("/", headers=key)
        again = await client.post("/", headers=key)
        other = await client.post("/", headers=key, json=1)
    assert (first.json(), again.json(), other.status_code) == ("a", "a", 422)
    assert done == ["a"]
    assert "other replicas do not" in caplog.text


async def test_a_run_is_cancelled_by_its_client(inngest: InngestServer) -> None:
    app = application(inngest)

    @app.get("/")
    @endpoint(cancellable=True)
    async def handler() -> None:
        await step.wait_for_event("never", event="never", timeout="24h")

    async with client_of(app) as client:
        first = await client.get("/")
        where = first.headers["location"]
        assert (await client.delete(where)).status_code == 200
        assert (await client.get(where)).status_code == 409
    assert inngest.runs[first.headers["durable-run-id"]].status == "CANCELLED"


async def test_a_run_that_takes_too_long_is_ended(inngest: InngestServer) -> None:
    app = application(inngest)

    @app.get("/")
    @endpoint(max_runtime="50ms")
    async def handler() -> None:
        await step.sleep("rest", "1s")

    async with client_of(app) as client:
        answer = await follow(client, "GET", "/")
    assert answer.status_code == 504
