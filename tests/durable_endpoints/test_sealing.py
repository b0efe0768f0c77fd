"""Keys: tokens that open one run, and stored requests and responses that open nowhere else."""

from __future__ import annotations

import asyncio
import base64
import os
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import httpx
import orjson
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from durable_endpoints import endpoint, step
from durable_endpoints.asgi_transport import AppTransport
from durable_endpoints.engines.embedded import EmbeddedEngine
from durable_endpoints.errors import ConfigurationError
from durable_endpoints.sealing import Keyring, UnsealError, key_file
from durable_endpoints.settings import Settings
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import one, run_id_of

pytestmark = pytest.mark.anyio

OLD, NEW = "an old secret of some length", "a new secret of some length"


# The keyring


def test_what_is_sealed_opens_for_its_run_and_part_only() -> None:
    keys = Keyring([OLD], [OLD])
    sealed = keys.seal("run-1", "request", b"the request")
    assert b"the request" not in sealed
    assert keys.unseal("run-1", "request", sealed) == b"the request"
    for run_id, part in (("run-2", "request"), ("run-1", "response")):
        with pytest.raises(UnsealError, match="SEALING_KEY_FALLBACK"):
            keys.unseal(run_id, part, sealed)  # type: ignore[arg-type]


def test_the_same_text_is_sealed_differently_each_time() -> None:
    keys = Keyring([OLD], [OLD])
    assert len({keys.seal("r", "request", b"x") for _ in range(50)}) == 50


def test_an_altered_bit_is_noticed() -> None:
    keys = Keyring([OLD], [OLD])
    sealed = keys.seal("r", "request", b"the request")
    for position in range(1, len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1
        with pytest.raises(UnsealError):
            keys.unseal("r", "request", bytes(altered))


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01" + b"n" * 12, os.urandom(200)])
def test_what_was_never_sealed_does_not_open(data: bytes) -> None:
    with pytest.raises(UnsealError):
        Keyring([OLD], [OLD]).unseal("r", "request", data)


def test_the_first_key_seals_and_signs_and_all_open() -> None:
    before, rotated, after = (
        Keyring([OLD], [OLD]),
        Keyring([NEW, OLD], [NEW, OLD]),
        Keyring([NEW], [NEW]),
    )
    sealed, token = before.seal("r", "response", b"x"), before.sign_run("r")
    assert rotated.unseal("r", "response", sealed) == b"x"
    assert rotated.verify_run("r", token)
    with pytest.raises(UnsealError):
        after.unseal("r", "response", sealed)
    assert not after.verify_run("r", token)
    assert after.unseal("r", "response", rotated.seal("r", "response", b"y")) == b"y"
    assert after.verify_run("r", rotated.sign_run("r"))


def test_signing_and_sealing_share_no_key() -> None:
    """One secret for both purposes is two keys, and a token says nothing of the other."""
    keys = Keyring([OLD], [OLD])
    token = base64.urlsafe_b64decode(keys.sign_run("r") + "=")
    assert token not in keys.seal("r", "request", b"")
    assert Keyring([NEW], [OLD]).unseal("r", "request", keys.seal("r", "request", b"x")) == b"x"
    assert not Keyring([NEW], [OLD]).verify_run("r", keys.sign_run("r"))


@pytest.mark.parametrize(("signing", "sealing"), [([], [OLD]), ([OLD], [])])
def test_a_keyring_needs_both_keys(signing: list[str], sealing: list[str]) -> None:
    with pytest.raises(ConfigurationError):
        Keyring(signing, sealing)


# The key file


def test_a_key_file_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "runs.db.key"
    secret = key_file(path)
    assert len(secret) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key_file(path) == secret
    assert key_file(tmp_path / "other.key") != secret


@pytest.mark.parametrize("content", [b"", b"short", b"\xff\xfe" * 40])
def test_a_key_file_without_a_key_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "runs.db.key"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=str(path)):
        key_file(path)
    assert path.read_bytes() == content


def test_a_key_file_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be made"):
        key_file(tmp_path / "nowhere" / "runs.db.key")


# Tokens, at the door


@endpoint
async def sleepy(request: Request) -> Response:
    await step.sleep("nap", "1h")
    return PlainTextResponse("the answer")


def altered(token: str) -> list[str]:
    last = "A" if token[-1] != "A" else "Q"
    return [
        "A" * len(token),
        token[:-1],
        token + "A",
        token[:-1] + last,
        token.swapcase(),
        token.encode().hex(),
        "ü" * len(token),
        "\0",
        "'; drop table runs --",
        "x" * 10_000,
    ]


async def test_a_forged_or_altered_token_is_401(engine: VirtualEngine) -> None:
    async with engine.client(one(engine, sleepy)) as client:
        location = httpx.URL((await client.get("/")).headers["location"])
        run_id, token = location.params["runId"], location.params["token"]
        await engine.advance("1h")
        for forged in altered(token):
            params = {"runId": run_id, "token": forged}
            response = await client.get("/wait/", params=params)
            assert (response.status_code, response.json()["error"]) == (401, "bad_token"), forged
            assert "the answer" not in response.text
            assert response.headers["cache-control"] == "no-store"
        assert (await client.get(location)).text == "the answer"


async def test_another_runs_token_is_401_whether_or_not_the_run_exists(
    engine: VirtualEngine,
) -> None:
    async with engine.client(one(engine, sleepy)) as client:
        mine, yours = [
            httpx.URL((await client.get("/")).headers["location"]).params for _ in range(2)
        ]
        answers = [
            await client.get("/wait/", params={"runId": run_id, "token": mine["token"]})
            for run_id in (yours["runId"], "01ARZ3NDEKTSV4RRFFQ69G5FAV", "nobody", "r\0", "ü")
        ]
        assert {answer.status_code for answer in answers} == {401}
        assert len({answer.content for answer in answers}) == 1  # nothing tells which run exists


async def test_a_token_opens_reading_only(engine: VirtualEngine) -> None:
    async with engine.client(one(engine, sleepy)) as client:
        response = await client.get("/")
        location = response.headers["location"]
        for method, status in (("POST", 405), ("PUT", 405), ("PATCH", 405), ("DELETE", 403)):
            assert (await client.request(method, location)).status_code == status
        run = await engine.run(run_id_of(response))
        assert run.status.label == "waiting"


# Sealed requests and responses, in a real file


class Disk:
    """An application on a file, stopped and started with other keys."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "runs.db"

    @asynccontextmanager
    async def serve(self, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
        @endpoint
        async def handler(request: Request) -> Response:
            await step.sleep("nap", "150ms")
            return PlainTextResponse(f"the answer for {request.headers['authorization']}")

        engine = EmbeddedEngine(Settings.load({"database": str(self.path), **settings}, {}))
        app = one(engine, handler)  # type: ignore[arg-type]
        await engine.start(for_good=True)
        transport = AppTransport(app)
        try:
            async with httpx.AsyncClient(
                transport=transport, base_url="http://a", timeout=10
            ) as client:
                await client.get("/wait/")  # so that the application is known to the engine
                yield client
        finally:
            await engine.stop()

    def execute(self, statement: str, *values: Any) -> list[Any]:
        connection = apsw.Connection(str(self.path))
        try:
            return list(connection.execute(statement, values))
        finally:
            connection.close()


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


async def start_run(client: httpx.AsyncClient, who: str) -> str:
    response = await client.get("/", headers={"authorization": who})
    assert response.status_code == 303
    return str(response.headers["location"])


KEYS = {"signing_key": OLD, "sealing_key": OLD}


async def test_a_request_moved_to_another_run_is_not_executed(disk: Disk) -> None:
    async with disk.serve(**KEYS) as client:
        victim, thief = await start_run(client, "victim"), await start_run(client, "thief")
        ids = [httpx.URL(location).params["runId"] for location in (victim, thief)]
        disk.execute(
            "update payloads set data = (select data from payloads where run_id = ?) "
            "where run_id = ?",
            *ids,
        )
        assert (await client.get(victim)).text == "the answer for victim"
        answer = await client.get(thief)
        assert (answer.status_code, answer.json()["reason"]) == (503, "request_sealed")
        assert "victim" not in answer.text


async def test_a_response_that_was_altered_is_not_sent(disk: Disk) -> None:
    async with disk.serve(**KEYS) as client:
        location = await start_run(client, "ada")
        assert (await client.get(location)).text == "the answer for ada"
        ((data,),) = disk.execute("select data from payloads where part = 'response'")
        changed = data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]
        disk.execute("update payloads set data = ? where part = 'response'", changed)
        answer = await client.get(location)
        assert (answer.status_code, answer.json()["error"]) == (503, "engine_unavailable")
        assert "cannot be opened" in answer.json()["detail"]
        disk.execute("update payloads set data = ? where part = 'response'", data)
        assert (await client.get(location)).text == "the answer for ada"


async def test_a_request_that_is_gone_fails_its_run(disk: Disk) -> None:
    async with disk.serve(**KEYS) as client:
        location = await start_run(client, "ada")
        disk.execute("delete from payloads")
        answer = await client.get(location)
        assert (answer.status_code, answer.json()["reason"]) == (500, "request_missing")


async def test_rotated_keys_open_what_the_old_ones_sealed(disk: Disk) -> None:
    async with disk.serve(**KEYS) as client:
        done = await start_run(client, "ada")
        assert (await client.get(done)).status_code == 200
        asleep = await start_run(client, "bob")
    rotated = {
        "signing_key": NEW,
        "signing_key_fallback": OLD,
        "sealing_key": NEW,
        "sealing_key_fallback": OLD,
    }
    async with disk.serve(**rotated) as client:
        assert (await client.get(done)).text == "the answer for ada"
        assert (await client.get(asleep)).text == "the answer for bob"
        fresh = await start_run(client, "cleo")
    async with disk.serve(signing_key=NEW, sealing_key=NEW) as client:
        assert (await client.get(done)).status_code == 401
        assert (await client.get(fresh)).text == "the answer for cleo"


async def test_a_lost_sealing_key_is_said_and_never_a_wrong_answer(disk: Disk) -> None:
    async with disk.serve(**KEYS) as client:
        done = await start_run(client, "ada")
        assert (await client.get(done)).status_code == 200
        asleep = await start_run(client, "bob")
    async with disk.serve(signing_key=OLD, sealing_key=NEW) as client:
        answer = await client.get(done)
        assert answer.status_code == 503
        assert "DURABLE_ENDPOINTS_SEALING_KEY_FALLBACK" in answer.json()["detail"]
        answer = await client.get(asleep)
        assert (answer.status_code, answer.json()["reason"]) == (503, "request_sealed")
        assert "DURABLE_ENDPOINTS_SEALING_KEY_FALLBACK" in answer.json()["detail"]
    async with disk.serve(**KEYS) as client:
        assert (await client.get(done)).text == "the answer for ada"
        retry = (time.time_ns() // 1_000_000, "retry", orjson.dumps({"run_id": run_id(asleep)}))
        disk.execute("insert into inbox (at, kind, data) values (?, ?, ?)", *retry)
        await asyncio.sleep(0.5)
        assert (await client.get(asleep)).text == "the answer for bob"


def run_id(location: str) -> str:
    return httpx.URL(location).params["runId"]


async def test_one_configured_key_leaves_the_other_to_the_key_file(disk: Disk) -> None:
    async with disk.serve(signing_key=OLD) as client:
        location = await start_run(client, "ada")
        assert Path(f"{disk.path}.key").exists()
    async with disk.serve(signing_key=OLD) as client:
        assert (await client.get(location)).text == "the answer for ada"
    async with disk.serve(signing_key=NEW) as client:
        assert (await client.get(location)).status_code == 401
