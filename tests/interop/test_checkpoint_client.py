"""`CheckpointClient` at a double of Inngest's server and at ours, awaited and blocking."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from durable_endpoints import CheckpointClient
from durable_endpoints.client import (
    ApiResult,
    CheckpointClientSync,
    CheckpointRefusedError,
    CheckpointRun,
    RunEvent,
    ServerUnavailableError,
    UnknownRunError,
)
from durable_endpoints.ids import new_run_id
from durable_endpoints.protocol.step_ids import hash_name
from durable_endpoints_server.app import create_app
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.memory import MemoryStore
from tests.interop.inngest_server import InngestServer, serving

pytestmark = pytest.mark.anyio

KEY, OTHER = "signkey-test-" + "ab" * 32, "signkey-test-" + "cd" * 32
EVENT = RunEvent("http://127.0.0.1:9", "/report", "POST", body=b"\xff")


def ran(name: str, data: Any) -> dict[str, Any]:
    return {"op": "StepRun", "id": hash_name(name), "name": name, "data": data, "opts": {}}


@asynccontextmanager
async def server(kind: str) -> AsyncIterator[str]:
    if kind == "theirs":
        async with InngestServer(KEY).serving() as double:
            yield double.url
        return
    ours = Server(ServerSettings(signing_keys=(KEY,), app_origins=(EVENT.domain,)), MemoryStore())
    async with serving(create_app(ours)) as url:
        yield url


@pytest.mark.parametrize("kind", ["theirs", "ours"])
async def test_a_run_is_reported_from_its_first_step_to_its_response(kind: str) -> None:
    run_id = new_run_id()
    async with server(kind) as url, CheckpointClient(url, signing_key=KEY) as client:
        run = await client.new_run(run_id, EVENT, [ran("a", 1)])
        assert run.run_id == run_id
        assert run.fn_id
        assert run.realtime_token
        await client.steps(run, [ran("b", {"x": [2]})])
        known = await client.get_steps(run_id)
        assert known == {hash_name("a"): {"data": 1}, hash_name("b"): {"data": {"x": [2]}}}
        await client.response(run, ApiResult(201, {"content-type": "text/plain"}, b"done"))
        async with httpx.AsyncClient(trust_env=False) as other:
            output = f"{url}/v1/http/runs/{run_id}/output?token={run.token}"
            answer = await other.get(output)
        assert (answer.status_code, answer.text) == (201, "done")


@pytest.mark.parametrize("kind", ["theirs", "ours"])
async def test_the_same_without_an_event_loop(kind: str) -> None:
    run_id = new_run_id()

    def report(url: str) -> dict[str, Any]:
        with CheckpointClientSync(url, signing_key=OTHER, signing_key_fallback=KEY) as client:
            run = client.new_run(run_id, EVENT, [ran("a", None)])
            client.steps(run, [ran("b", 2)])
            known = client.get_steps(run_id)
            client.response(run, ApiResult(200))
            return known

    async with server(kind) as url:
        known = await asyncio.to_thread(report, url)
    assert known == {hash_name("a"): {"data": None}, hash_name("b"): {"data": 2}}


async def test_what_went_wrong_has_a_class_of_its_own() -> None:
    async with InngestServer(KEY).serving() as double:
        async with CheckpointClient(double.url, signing_key=OTHER) as client:
            with pytest.raises(CheckpointRefusedError, match="401"):
                await client.get_steps(new_run_id())
        async with CheckpointClient(double.url, signing_key=KEY) as client:
            with pytest.raises(UnknownRunError, match="410"):
                await client.get_steps(new_run_id())
            with pytest.raises(UnknownRunError, match="404"):
                await client.steps(CheckpointRun("x/y"), [])
            double.refuse = lambda path: True
            with pytest.raises(ServerUnavailableError, match="503"):
                await client.get_steps(new_run_id())
    with pytest.raises(ValueError, match="http://"):
        CheckpointClient("inngest.example.com")


async def test_an_answer_that_is_lost_ends_a_run_once() -> None:
    async with InngestServer().serving() as double:
        lost: list[str] = []

        def lose(path: str, body: Any) -> bool:
            lost.append(path)
            return len(lost) == 1

        double.lose = lose
        async with CheckpointClient(double.url) as client:
            complete = {"op": "RunComplete", "id": "x", "data": ApiResult(200).as_json()}
            run = await client.new_run(new_run_id(), EVENT, [complete])
        assert double.runs[run.run_id].status == "COMPLETED"
        assert len(lost) == 2


def test_a_result_is_read_in_both_forms() -> None:
    binary = ApiResult(200, {"a": "b"}, b"\xff\x00", "broken")
    text = ApiResult(404, {}, "grün".encode())
    assert ApiResult.from_json(binary.as_json()) == binary
    assert ApiResult.from_json(text.as_json()) == text
    go = {"status_code": 200, "body": b64encode(b"x").decode(), "headers": None, "duration": 5}
    assert ApiResult.from_json(go) == ApiResult(200, {}, b"x")
    for junk in ({}, [], "x", {"status": "200"}, {"status_code": 200, "body": "…"}):
        with pytest.raises(ValueError):
            ApiResult.from_json(junk)
