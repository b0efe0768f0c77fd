"""Re-entries of an Inngest server over the network: who may call, and what a caller is told."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request

from durable_endpoints import (
    ConfigurationError,
    DurableEndpointsMiddleware,
    endpoint,
    remember,
    step,
)
from durable_endpoints.engines.inngest.calling import Calls
from durable_endpoints.engines.inngest.engine import InngestEngine, inngest_engine
from durable_endpoints.events import new_event
from durable_endpoints.settings import Settings
from tests.interop.inngest_server import InngestServer
from tests.interop.test_inngest_engine import application, client_of, counting, follow

pytestmark = pytest.mark.anyio

OLD, NEW = "signkey-test-" + "ab" * 32, "signkey-prod-" + "cd" * 32


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
async def inngest() -> AsyncIterator[InngestServer]:
    server = InngestServer(OLD)
    server.clock = 20
    async with server.serving():
        yield server


def sleeper(inngest: InngestServer, done: list[str], **settings: Any) -> FastAPI:
    app = application(inngest, **{"signing_key": OLD, **settings})

    @app.post("/")
    @endpoint
    async def handler() -> str:
        await step.sleep("rest", 0.1)
        return await step.run("a", counting(done, "a"))

    return app


async def test_a_signed_call_is_answered_and_the_reply_is_signed(inngest: InngestServer) -> None:
    done: list[str] = []
    async with client_of(sleeper(inngest, done)) as client:
        assert (await follow(client, "POST", "/", json={"é": [1.0]})).json() == "a"
    reply = inngest.replies[0]
    assert reply.headers["x-inngest-sdk"].startswith("durable-endpoints:v")
    fields = dict(pair.split("=") for pair in reply.headers["x-inngest-signature"].split("&"))
    signed = hmac.new(b"ab" * 32, reply.content + fields["t"].encode(), hashlib.sha256)
    assert fields["s"] == signed.hexdigest()
    assert [json.loads(reply.content)[0]["op"], len(done)] == ["StepRun", 1]


async def test_a_forged_call_and_a_repeated_one_are_refused(inngest: InngestServer) -> None:
    done: list[str] = []
    async with client_of(sleeper(inngest, done)) as client:
        await follow(client, "POST", "/")
        seen = inngest.calls[-1]
        run_id = seen.headers["x-run-id"]
        forged = {"x-run-id": run_id, "x-inngest-signature": f"t={int(time.time())}&s={'0' * 64}"}
        for headers in (
            dict(seen.headers),
            forged,
            {**forged, "x-inngest-signature": ""},
            {**forged, "x-inngest-signature": "t=&s=é&&&".encode()},
            {**dict(seen.headers), "x-inngest-signature": inngest.sign(b"other")},
        ):
            answer = await client.post("/", headers=headers)
            assert (answer.status_code, answer.json()) == (401, {"message": "Unauthorized"})
        large = await client.post("/", headers=forged, content=b"1" * 300_000)
        assert large.status_code == 413
    assert len(done) == 1


async def test_keys_are_rotated_without_losing_a_run(inngest: InngestServer) -> None:
    done: list[str] = []
    app = sleeper(inngest, done, signing_key=NEW, signing_key_fallback=OLD)
    async with client_of(app) as client:  # the server does not know the new key yet
        first = await client.post("/")
        inngest.signing_key = NEW
        assert (await client.get(first.headers["location"])).json() == "a"


def test_without_a_key_only_this_machine_may_call() -> None:
    calls = Calls(Settings(server_url="http://127.0.0.1:1"))
    headers = {"x-run-id": "0" * 26, "x-inngest-signature": ""}
    peers = ("127.0.0.1", "::1", "203.0.113.7", "")
    assert [calls.admits(headers, peer, b"") for peer in peers] == ["", "", None, None]


async def test_what_is_no_run_of_this_application_is_not_begun_anew(
    inngest: InngestServer,
) -> None:
    done: list[str] = []
    async with client_of(sleeper(inngest, done)) as client:
        for run_id, status in (("01J" + "0" * 23, 400), ("../x", 400)):
            headers = {"x-run-id": run_id, "x-inngest-signature": inngest.sign(b"")}
            answer = await client.post("/", headers=headers)
            assert answer.status_code == status
    assert not done
    assert not inngest.runs


async def test_a_token_opens_its_own_run_only(inngest: InngestServer) -> None:
    async with client_of(sleeper(inngest, [])) as client:
        first = httpx.URL((await client.post("/")).headers["location"])
        other = httpx.URL((await client.post("/")).headers["location"])
        mixed = first.copy_set_param("token", other.params["token"])
        assert (await client.get(mixed)).status_code == 401
        ours, _, theirs = first.params["token"].partition("~")
        swapped = f"{ours}~{other.params['token'].partition('~')[2]}"
        assert (await client.get(first.copy_set_param("token", swapped))).status_code == 401
        assert theirs
        assert (await client.get(first)).json() == "a"


async def test_a_login_that_has_expired_meanwhile_can_be_remembered(
    inngest: InngestServer,
) -> None:
    asked: list[str] = []
    app = application(inngest, signing_key=OLD)

    async def user(request: Request) -> str:
        asked.append(request.headers["authorization"])
        if len(asked) > 1:
            raise HTTPException(401)
        return "ada"

    @app.get("/")
    @endpoint
    async def handler(name: str = Depends(remember(user))) -> str:
        await step.sleep("rest", 0.1)
        return name

    async with client_of(app) as client:
        answer = await follow(client, "GET", "/", headers={"authorization": "Bearer x"})
    assert answer.json() == "ada"
    assert asked == ["Bearer x"]


async def test_a_login_that_has_expired_fails_the_run_with_that_reason(
    inngest: InngestServer,
) -> None:
    asked: list[str] = []
    app = application(inngest, signing_key=OLD)

    async def user() -> str:
        asked.append("user")
        if len(asked) > 1:
            raise HTTPException(401)
        return "ada"

    @app.get("/")
    @endpoint(retries=1)
    async def handler(name: str = Depends(user)) -> str:
        await step.sleep("rest", 0.1)
        return name

    async with client_of(app) as client:
        answer = await follow(client, "GET", "/")
    assert answer.status_code == 500
    assert answer.json()["reason"] == "refused_before_handler"
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"server_url": "https://inngest.example.com"}, "DURABLE_ENDPOINTS_PUBLIC_URL"),
        (
            {"server_url": "https://inngest.example.com", "public_url": "https://a.example.com"},
            "DURABLE_ENDPOINTS_SIGNING_KEY",
        ),
        ({"server_url": "http://127.0.0.1:1", "track_all_endpoints": True}, "track_all_endpoints"),
    ],
)
async def test_what_the_server_cannot_be_used_with_is_told_at_the_start(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        await InngestEngine(Settings.load(settings, {})).start()


async def _silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def test_a_server_that_never_answers_is_waited_for_no_longer_than_it_may_be() -> None:
    seen: list[str] = []
    async with await asyncio.start_server(_silence, "127.0.0.1") as silent:
        url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
        kept = InngestEngine(Settings.load({"server_url": url, "server_timeout": 0.2}, {}))
        app = FastAPI()
        app.add_middleware(DurableEndpointsMiddleware, engine=kept)

        @app.get("/")
        @endpoint
        async def handler() -> str:
            return await step.run("a", counting([], "a"))

        @app.get("/proceeds")
        @endpoint(on_unavailable="proceed")
        async def proceeds() -> str:
            seen.append(step.run_id)
            return await step.run("a", counting([], "a"))

        async with client_of(app) as client:
            assert (await client.get("/")).status_code == 503
            answer = await client.get("/proceeds")
        assert (answer.status_code, answer.json()) == (200, "a")
        assert "in time" in answer.headers["durable-degraded"]
        assert not kept.executes(seen[0])


def test_applications_with_keys_of_their_own_share_no_engine() -> None:
    url = "http://127.0.0.1:1"
    old = inngest_engine(Settings.load({"server_url": url, "signing_key": OLD}, {}))
    new = inngest_engine(Settings.load({"server_url": url, "signing_key": NEW}, {}))
    assert old is not new
    assert old is inngest_engine(Settings.load({"server_url": url, "signing_key": OLD}, {}))


async def test_an_engine_that_starts_on_another_event_loop_goes_on_with_the_first(
    inngest: InngestServer,
) -> None:
    kept = InngestEngine(Settings.load({"server_url": inngest.url, "signing_key": OLD}, {}))
    app = FastAPI()
    app.add_middleware(DurableEndpointsMiddleware, engine=kept)

    @app.get("/")
    @endpoint
    async def handler() -> str:
        return await step.run("a", counting([], "a"))

    async def elsewhere() -> str:
        event = new_event("an/event", {}, "its id", None)
        before = await kept.send_event(event)
        await kept.start()
        after = await kept.send_event(event)
        await kept.server.close()
        return before + after

    async with client_of(app) as client:
        assert (await client.get("/")).json() == "a"
        assert await asyncio.to_thread(asyncio.run, elsewhere()) == "its id" * 2
        assert (await client.get("/")).json() == "a"
