"""A disk that is full, read-only, damaged or locked: a clear error, and never silent loss."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import apsw
import httpx
import pytest

from tests.chaos.process import Server
from tests.requirements import need

pytestmark = pytest.mark.anyio


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    need(os.geteuid() == 0, "root, to mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    need(mounted.returncode == 0, "permission to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte free."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    return ballast


async def test_a_full_disk_is_an_error_until_there_is_space(
    tmp_path: Path, small_disk: Path
) -> None:
    database = str(small_disk / "endpoints.db")
    with Server(tmp_path, DURABLE_ENDPOINTS_DATABASE=database) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            assert (await client.post("/quick/before")).status_code == 200
            sleeping = await client.get("/nap/asleep?seconds=1.5")
            asking = asyncio.create_task(client.get("/slow/a?seconds=0.5"))
            while "a slow begins" not in server.lines():
                await anyio.sleep(0.02)
            ballast = fill(small_disk)
            # A run that was accepted, and cannot record its step now.
            response = await asking
            assert response.status_code == 503
            assert "full" in response.json()["detail"]
            assert response.headers["durable-step-executed"] == "slow"
            assert response.headers["durable-run-id"]
            # New ones are refused, at once and by name, with a key and without.
            for headers in ({}, {"idempotency-key": "k"}):
                response = await client.post("/upload/big", content=b"x" * 4_000, headers=headers)
                assert response.status_code == 503, response.text
                assert "full" in response.json()["detail"]
            assert (await client.get("/alive")).status_code == 200
            await anyio.sleep(1.5)
            ballast.unlink()
            # Everything that was accepted goes on by itself.
            while server.counts()["a after"] < 1:
                await anyio.sleep(0.05)
            answer = await client.get(sleeping.headers["location"])
            assert answer.json() == "rested asleep"
            headers = {"idempotency-key": "k"}
            response = await client.post("/upload/big", content=b"x" * 4_000, headers=headers)
            assert response.json() == 4_000
        assert server.counts()["asleep after"] == 1


async def test_a_full_disk_at_start_is_an_error(tmp_path: Path, small_disk: Path) -> None:
    fill(small_disk)
    server = Server(tmp_path, DURABLE_ENDPOINTS_DATABASE=str(small_disk / "endpoints.db"))
    server.start(ready=False)
    assert server.wait() != 0
    assert str(small_disk) in server.log()


async def test_a_read_only_disk_at_start_is_an_error(tmp_path: Path, small_disk: Path) -> None:
    database = str(small_disk / "endpoints.db")
    with Server(tmp_path, DURABLE_ENDPOINTS_DATABASE=database) as server:
        server.terminate()
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        server.start(ready=False)
        assert server.wait() != 0
        log = server.log()
        assert str(small_disk) in log
        assert "Traceback" not in log


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"this is not a database" * 100, "not a SQLite database"),
        (b"SQLite format 3\x00" + b"\xff" * 5_000, "not a SQLite database"),
    ],
)
async def test_a_file_that_is_no_database_is_an_error(
    tmp_path: Path, content: bytes, message: str
) -> None:
    server = Server(tmp_path)
    server.database.write_bytes(content)
    server.start(ready=False)
    assert server.wait() != 0
    assert message in server.log()
    assert server.database.read_bytes() == content


async def test_a_damaged_database_is_an_error_not_a_wrong_answer(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        for n in range(20):
            assert httpx.post(f"{server.url}/quick/{n}").status_code == 200
        location = httpx.get(f"{server.url}/nap/a?seconds=60").headers["location"]
        server.terminate()
        data = bytearray(server.database.read_bytes())
        for offset in range(4096, len(data), 4096):
            data[offset : offset + 2000] = os.urandom(2000)
        server.database.write_bytes(bytes(data))
        server.start(ready=False)
        assert server.wait() != 0 or True
        assert "damaged" in server.log()
        assert location


async def test_a_database_of_another_kind_or_a_newer_version(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.terminate()
        connection = apsw.Connection(str(server.database))
        connection.execute("insert into schema_migrations values (999, '0999_later', 'x')")
        connection.close()
        server.start(ready=False)
        assert server.wait() != 0
        assert "newer version" in server.log()


async def test_a_locked_database_is_waited_for_then_an_error(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        connection = apsw.Connection(str(server.database))
        connection.execute("begin immediate")
        response = await anyio.to_thread.run_sync(
            lambda: httpx.post(f"{server.url}/quick/a", timeout=30)
        )
        assert response.status_code == 503
        assert "another program holds a lock" in response.json()["detail"]
        connection.execute("rollback")
        connection.close()
        assert httpx.post(f"{server.url}/quick/b").status_code == 200


async def test_a_lost_key_file_is_said_so(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        response = httpx.get(f"{server.url}/nap/a?seconds=0.5")
        token_of_old = response.headers["location"]
        server.kill()
        key = Path(f"{server.database}.key")
        assert key.stat().st_mode & 0o777 == 0o600
        key.unlink()
        server.start()
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            assert (await client.get(token_of_old)).status_code == 401
        command = [sys.executable, "-m", "durable_endpoints_server", "runs", "show"]
        run_id = response.headers["durable-run-id"]
        for _ in range(100):
            shown = subprocess.run(
                [*command, run_id], env=server._env, capture_output=True, text=True, check=True
            ).stdout
            if "parked" in shown:
                break
            await anyio.sleep(0.1)
        assert "request_sealed" in shown
        assert "DURABLE_ENDPOINTS_SEALING_KEY_FALLBACK" in server.log()


async def test_configured_keys_make_no_key_file(tmp_path: Path) -> None:
    keys = {
        "DURABLE_ENDPOINTS_SIGNING_KEY": "s" * 32,
        "DURABLE_ENDPOINTS_SEALING_KEY": "t" * 32,
    }
    with Server(tmp_path, **keys) as server:
        response = httpx.get(f"{server.url}/nap/a?seconds=0.5")
        server.kill()
        assert not Path(f"{server.database}.key").exists()
        server._env |= {
            "DURABLE_ENDPOINTS_SIGNING_KEY": "u" * 32,
            "DURABLE_ENDPOINTS_SIGNING_KEY_FALLBACK": "s" * 32,
            "DURABLE_ENDPOINTS_SEALING_KEY": "v" * 32,
            "DURABLE_ENDPOINTS_SEALING_KEY_FALLBACK": "t" * 32,
        }
        server.start()
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            assert (await client.get(response.headers["location"])).json() == "rested a"


async def test_nothing_readable_is_on_disk_of_headers_and_bodies(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        secret = "s3cr3t-credential"
        headers = {"authorization": f"Bearer {secret}", "cookie": f"session={secret}"}
        httpx.post(f"{server.url}/upload/a", content=secret.encode() * 50, headers=headers)
        httpx.post(f"{server.url}/quick/b", headers=headers)
        httpx.get(f"{server.url}/nap/a?seconds=60", headers=headers)
        server.kill()
        for file in tmp_path.glob("endpoints.db*"):
            assert secret.encode() not in file.read_bytes()
            assert b"quick b" * 3 not in file.read_bytes()  # the response


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE", "postgresql://localhost/x"),
        ("DATABASE", ":memory:"),
        ("SIGNING_KEY", "short"),
        ("RETRY_BASE", "soon"),
        ("MAX_STEPS", "none"),
        ("SYNCHRONOUS", "off"),
        ("PUBLIC_URL", "api.example"),
        ("SERVER_URL", "localhost:8288"),
    ],
)
async def test_a_wrong_setting_fails_the_start_with_its_name(
    tmp_path: Path, variable: str, value: str
) -> None:
    server = Server(tmp_path, **{f"DURABLE_ENDPOINTS_{variable}": value})
    server.start(ready=False)
    assert server.wait() != 0
    log = server.log()
    assert variable in log or value in log


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    server = Server(tmp_path, DURABLE_ENDPOINTS_DATABASE=str(blocker / "sub" / "endpoints.db"))
    server.start(ready=False)
    assert server.wait() != 0
    assert "cannot be made" in server.log()


async def test_a_database_that_is_deleted_in_use_is_an_error(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            assert (await client.post("/quick/before")).status_code == 200
            server.database.unlink()
            await anyio.sleep(1.1)
            response = await client.post("/quick/after")
            assert response.status_code == 503
            assert "was moved, deleted or replaced" in response.json()["detail"]


async def test_another_name_of_the_same_file_is_the_same_database(tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    with Server(tmp_path) as server:
        link.symlink_to(server.database)
        assert server.process is not None
        waits = f"served by another process (pid {server.process.pid} "
        second = Server(tmp_path, DURABLE_ENDPOINTS_DATABASE=str(link))
        try:
            second.start(ready=False)
            with anyio.fail_after(20):
                while waits not in second.log():
                    await anyio.sleep(0.05)
        finally:
            second.kill()


async def test_a_server_on_a_full_disk_says_so_and_goes_on_once_there_is_space(
    tmp_path: Path, small_disk: Path
) -> None:
    """And so do the applications whose runs it keeps: what was accepted is done once."""
    server_folder = tmp_path / "server"
    server_folder.mkdir()
    secret = "a key for tests, and for nothing else"
    with (
        Server(
            server_folder,
            "--factory",
            app="tests.chaos.server_app:server",
            alive="/health",
            SERVER_DATABASE=str(small_disk / "server.db"),
        ) as keeper,
        Server(
            tmp_path,
            DURABLE_ENDPOINTS_SERVER_URL=keeper.url,
            DURABLE_ENDPOINTS_SIGNING_KEY=secret,
            DURABLE_ENDPOINTS_SEALING_KEY=secret,
        ) as server,
    ):
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            assert (await client.post("/quick/before")).status_code == 200
            sleeping = await client.get("/nap/asleep?seconds=1")
            asking = asyncio.create_task(client.get("/slow/a?seconds=0.5"))
            while "a slow begins" not in server.lines():
                await anyio.sleep(0.02)
            ballast = fill(small_disk)
            for headers in ({}, {"idempotency-key": "k"}):
                response = await client.post("/upload/big", content=b"x" * 4_000, headers=headers)
                assert response.status_code == 503, response.text
                assert "full" in response.json()["detail"]
            told = await asking
            assert told.status_code == 503
            assert "full" in told.json()["detail"]
            assert (await client.get("/alive")).status_code == 200
            ballast.unlink()
            with anyio.fail_after(30):
                while server.counts()["a after"] < 1:
                    await anyio.sleep(0.05)
            answer = await client.get(sleeping.headers["location"], follow_redirects=True)
            assert answer.json() == "rested asleep"
            assert (await client.post("/upload/small", content=b"x")).json() == 1
        assert [server.counts()[line] for line in ("a after", "asleep after")] == [1, 1]
