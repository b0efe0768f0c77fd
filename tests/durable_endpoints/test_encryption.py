"""Hooks that encode step data, and the one that encrypts it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from durable_endpoints import ConfigurationError, Hook, StepEncryption, StepError, endpoint, step
from durable_endpoints.engines.embedded import EmbeddedEngine
from durable_endpoints.hooks import StepData
from durable_endpoints.settings import Settings
from durable_endpoints.testing import AppTransport, VirtualEngine
from tests.durable_endpoints.helpers import one, run_id_of

pytestmark = pytest.mark.anyio

KEY, NEXT, OTHER = "k" * 32, "n" * 32, "o" * 32
SECRET = "whisper-4711"


class Diagnosis(BaseModel):
    text: str


def diagnose() -> Diagnosis:
    return Diagnosis(text=SECRET)


def fail() -> None:
    raise ValueError(f"not {SECRET}")


def app_of(engine: Any, *hooks: Hook, handler: Callable[..., Any] | None = None) -> Starlette:
    async def default(request: Request) -> Response:
        found = await step.run("diagnose", diagnose)
        try:
            await step.options(retries=1).run("fail", fail)
        except StepError as error:
            reason = str(error.message)
        await step.sleep("night", "8h")
        assert found == await step.run("again", diagnose)
        return JSONResponse({"text": found.text, "reason": reason})

    return one(engine, endpoint(handler or default), hooks=hooks, retries=0)


async def finish(engine: VirtualEngine, client: httpx.AsyncClient) -> httpx.Response:
    response = await client.post("/")
    await engine.advance("9h")
    return await client.get(response.headers["location"])


async def test_the_engine_holds_nothing_readable_and_the_handler_sees_no_difference(
    engine: VirtualEngine,
) -> None:
    async with engine.client(app_of(engine, StepEncryption(KEY))) as client:
        answer = await finish(engine, client)
        assert answer.json() == {"text": SECRET, "reason": f"not {SECRET}"}
        kept = (await engine.memo(run_id_of(answer))).values()
    held = [data for record in kept for data in (record.value, record.error) if data]
    assert sum(data.startswith(b'{"__ENCRYPTED__":true') for data in held) == 3
    assert not any(SECRET.encode() in data for data in held)
    for data in held:
        orjson.loads(data)  # any engine that takes JSON can keep it


async def test_no_byte_of_the_database_shows_it(tmp_path: Path) -> None:
    settings = Settings.load({"database": f"sqlite:///{tmp_path / 'e.db'}"}, environ={})
    engine = EmbeddedEngine(settings)

    async def handler(request: Request) -> Response:
        await step.run("diagnose", diagnose)
        with pytest.raises(StepError):
            await step.options(retries=0).run("fail", fail)
        raise RuntimeError(SECRET)

    app = app_of(engine, StepEncryption(KEY), handler=handler)
    async with httpx.AsyncClient(transport=AppTransport(app), base_url="http://test") as client:
        assert (await client.post("/")).status_code == 500
    await engine.stop()
    files = [path.read_bytes() for path in tmp_path.iterdir() if path.is_file()]
    assert len(files) >= 2
    assert not any(SECRET.encode() in data for data in files)
    connection = sqlite3.connect(tmp_path / "e.db")
    assert connection.execute("SELECT count(*) FROM steps WHERE name = 'diagnose'").fetchone()[0]
    connection.close()


async def test_keys_are_rotated_while_runs_are_under_way(engine: VirtualEngine) -> None:
    apps = [
        app_of(engine, StepEncryption(KEY)),
        app_of(engine, StepEncryption(NEXT, fallback_keys=[KEY])),
    ]
    async with engine.client(apps[0]) as client:
        location = (await client.post("/")).headers["location"]
        await engine.crash()
    async with engine.client(apps[1]) as client:
        await client.get("/wait?runId=a&token=b")  # the new process is there
        await engine.advance("9h")
        answer = await client.get(location)
        assert answer.json()["text"] == SECRET
        records = await engine.memo(run_id_of(answer))
        keys = {orjson.loads(records[name].value or b"")["key"] for name in ("diagnose", "again")}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ((), (StepEncryption(KEY),)),
        ((StepEncryption(KEY),), (StepEncryption(KEY, [], decrypt_only=True),)),
    ],
    ids=["on", "off"],
)
async def test_encryption_is_turned_on_and_off_while_runs_are_under_way(
    engine: VirtualEngine, first: tuple[Hook, ...], then: tuple[Hook, ...]
) -> None:
    async with engine.client(app_of(engine, *first)) as client:
        location = (await client.post("/")).headers["location"]
        await engine.crash()
    async with engine.client(app_of(engine, *then)) as client:
        await client.get("/wait?runId=a&token=b")
        await engine.advance("9h")
        assert (await client.get(location)).json()["text"] == SECRET


async def test_a_run_that_no_key_opens_is_parked_and_goes_on_with_the_key(
    engine: VirtualEngine,
) -> None:
    async with engine.client(app_of(engine, StepEncryption(KEY))) as client:
        first = await client.post("/")
        await engine.crash()
    async with engine.client(app_of(engine, StepEncryption(OTHER))) as client:
        await client.get("/wait?runId=a&token=b")
        await engine.advance("9h")
        answer = await client.get(first.headers["location"])
        assert answer.status_code == 503
        assert answer.json()["reason"] == "undecodable"
        assert "runs retry" in answer.text
        await engine.crash()
    async with engine.client(app_of(engine, StepEncryption(OTHER, [KEY]))) as client:
        await client.get("/wait?runId=a&token=b")
        await engine.host.retry(run_id_of(first))
        await engine.advance("9h")
        assert (await client.get(first.headers["location"])).json()["text"] == SECRET


def test_what_is_moved_to_another_run_step_or_role_does_not_open() -> None:
    hook = StepEncryption(KEY)
    here = StepData("run", "step", "result")
    data = hook.encode(here, b"1")
    assert hook.decode(here, data) == b"1"
    for there in (
        here._replace(run_id="other"),
        here._replace(step="other"),
        here._replace(kind="error"),
    ):
        with pytest.raises(ValueError, match="belongs to another"):
            hook.decode(there, data)
    changed = orjson.loads(data) | {"data": "AAAA" + orjson.loads(data)["data"][4:]}
    with pytest.raises(ValueError, match="changed"):
        hook.decode(here, orjson.dumps(changed))


def test_what_others_have_encrypted_is_left_to_them() -> None:
    foreign = b'{"__ENCRYPTED__":true,"__STRATEGY__":"inngest/libsodium","data":"x"}'
    assert StepEncryption(KEY).decode(StepData("r", "s", "result"), foreign) == foreign


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DURABLE_ENDPOINTS_ENCRYPTION_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="set DURABLE_ENDPOINTS_ENCRYPTION_KEY"):
        StepEncryption()
    old = StepEncryption(KEY).encode(StepData("r", "s", "result"), b"1")
    monkeypatch.setenv("DURABLE_ENDPOINTS_ENCRYPTION_KEY", NEXT)
    monkeypatch.setenv("DURABLE_ENDPOINTS_ENCRYPTION_KEY_FALLBACK", KEY)
    assert StepEncryption().decode(StepData("r", "s", "result"), old) == b"1"
    with pytest.raises(ConfigurationError, match="at least 32 characters"):
        StepEncryption("short")
    with pytest.raises(ConfigurationError, match="a list"):
        StepEncryption(KEY, OTHER)


class Tagging(Hook):
    """Shows in which order hooks are asked."""

    def __init__(self, tag: str) -> None:
        self.tag = tag

    def encode(self, where: StepData, data: bytes) -> bytes:
        return orjson.dumps({self.tag: orjson.Fragment(data)})

    def decode(self, where: StepData, data: bytes) -> bytes:
        return orjson.dumps(orjson.loads(data)[self.tag])


async def test_hooks_encode_in_their_order_and_decode_in_the_opposite_one(
    engine: VirtualEngine,
) -> None:
    async with engine.client(app_of(engine, Tagging("a"), Hook(), Tagging("b"))) as client:
        answer = await finish(engine, client)
        assert answer.json()["text"] == SECRET
        record = (await engine.memo(run_id_of(answer)))["diagnose"]
    assert orjson.loads(record.value or b"") == {"b": {"a": {"text": SECRET}}}


class Broken(Hook):
    def encode(self, where: StepData, data: bytes) -> bytes:
        raise OSError("the key service is away")


async def test_nothing_leaves_that_could_not_be_encoded(engine: VirtualEngine) -> None:
    runs: list[int] = []

    async def handler(request: Request) -> Response:
        def body() -> str:
            runs.append(1)
            return SECRET

        await step.run("s", body)
        return JSONResponse("done")

    app = app_of(engine, Broken(), handler=handler)
    async with engine.client(app) as client:
        response = await client.post("/")
        assert response.status_code == 500
        memo = await engine.memo(run_id_of(response))
        assert runs == [1]
        assert not any(SECRET in str(record) for record in memo.values())
