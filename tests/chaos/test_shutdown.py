"""Servers that end: running steps finish, runs are handed over, nothing hangs."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import anyio
import httpx
import pytest

from tests.chaos.process import Server

pytestmark = pytest.mark.anyio

SERVERS = {
    "httptools": ("--http", "httptools"),
    "h11": ("--http", "h11", "--loop", "asyncio"),
    "graceful timeout": ("--timeout-graceful-shutdown", "3"),
}


@pytest.mark.parametrize("options", SERVERS.values(), ids=SERVERS.keys())
async def test_sigterm_lets_a_running_step_finish(tmp_path: Path, options: tuple[str, ...]) -> None:
    with Server(tmp_path, *options) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            asking = asyncio.create_task(client.get("/slow/a?seconds=1"))
            while "a slow begins" not in server.lines():
                await anyio.sleep(0.02)
            began = time.monotonic()
            code = await anyio.to_thread.run_sync(server.terminate)
            took = time.monotonic() - began
            response = await asking
        assert code in (0, -signal.SIGTERM)
        assert 0.3 < took < 6, server.log()
        assert server.lines() == ["a slow begins", "a slow ends"]
        assert response.status_code == 303
        server.start()
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            answer = await client.get(response.headers["location"])
            assert answer.json() == "slow after"
        assert server.lines() == ["a slow begins", "a slow ends", "a after"]
        assert "Traceback" not in server.log()


async def test_a_step_that_outlasts_the_grace_time_is_given_up(tmp_path: Path) -> None:
    with Server(tmp_path, DURABLE_ENDPOINTS_DRAIN_TIMEOUT="500ms") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            asking = asyncio.create_task(client.get("/slow/a?seconds=20"))
            while "a slow begins" not in server.lines():
                await anyio.sleep(0.02)
            began = time.monotonic()
            await anyio.to_thread.run_sync(server.terminate)
            assert time.monotonic() - began < 5
            response = await asking
            assert response.status_code == 303
            assert "a slow ends" not in server.lines()


async def test_plain_io_is_handed_over(tmp_path: Path) -> None:
    with Server(tmp_path, DURABLE_ENDPOINTS_DRAIN_TIMEOUT="500ms") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            asking = asyncio.create_task(client.get("/plain-io/a"))
            while "a waits" not in server.lines():
                await anyio.sleep(0.02)
            await anyio.to_thread.run_sync(server.terminate)
            response = await asking
            assert response.status_code == 303
        server._env["PATIENT"] = "1"
        server.start()
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            assert (await client.get(response.headers["location"])).json() == "patient"
        assert server.counts()["a before"] == 1


async def test_waiting_clients_do_not_hold_up_the_end(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            location = (await client.get("/nap/a?seconds=3")).headers["location"]
            waiting = [asyncio.create_task(client.get(location)) for _ in range(5)]
            await anyio.sleep(0.3)
            began = time.monotonic()
            await anyio.to_thread.run_sync(server.terminate)
            assert time.monotonic() - began < 3
            answers = await asyncio.gather(*waiting)
            assert {answer.status_code for answer in answers} == {303}
        server.start()
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            url = httpx.URL(f"{server.url}{location}").join(answers[0].headers["location"])
            assert (await client.get(url)).json() == "rested a"


async def test_a_client_is_sent_to_wait_elsewhere_and_not_told_that_it_has_waited_enough(
    tmp_path: Path,
) -> None:
    with Server(tmp_path) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            location = (await client.get("/nap/a?seconds=2")).headers["location"]
            waiting = asyncio.create_task(client.get(location, follow_redirects=True))
            await anyio.sleep(0.3)
            await anyio.to_thread.run_sync(server.terminate)
            with pytest.raises(httpx.ConnectError) as refused:  # a load balancer would go elsewhere
                await waiting
        assert refused.value.request.url.params["turn"] == "0"
        server.start()
        async with httpx.AsyncClient(timeout=30, follow_redirects=True) as client:
            assert (await client.get(refused.value.request.url)).json() == "rested a"


async def test_a_run_that_was_reentered_is_handed_over_too(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.kill()
        server.start()
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            # With a key the run is on disk before its first body begins, and so survives the kill.
            headers = {"idempotency-key": "k"}
            asking = asyncio.create_task(client.get("/slow/a?seconds=1", headers=headers))
            while "a slow begins" not in server.lines():
                await anyio.sleep(0.02)
            server.kill()
            with pytest.raises(httpx.TransportError):
                await asking
        server.start()
        while server.counts()["a slow begins"] < 2:
            await anyio.sleep(0.02)
        server.terminate()
        assert server.counts()["a slow ends"] == 1
        server.start()
        while "a after" not in server.lines():
            await anyio.sleep(0.02)
        assert server.counts() == {"a slow begins": 2, "a slow ends": 1, "a after": 1}


async def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            asking = asyncio.create_task(client.get("/slow/a?seconds=2"))
            while "a slow begins" not in server.lines():
                await anyio.sleep(0.02)
            server.signal(signal.SIGINT)
            await anyio.sleep(0.5)
            server.signal(signal.SIGINT)
            began = time.monotonic()
            await anyio.to_thread.run_sync(server.wait)
            assert time.monotonic() - began < 5
            asking.cancel()
        server.start()
        while server.counts()["a after"] < 1:
            await anyio.sleep(0.05)


async def test_hypercorn(tmp_path: Path) -> None:
    with Server(tmp_path, "--graceful-timeout", "3", module="hypercorn") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            response = await client.get("/nap/a?seconds=0.2", follow_redirects=True)
            assert response.json() == "rested a"
            asking = asyncio.create_task(client.get("/slow/b?seconds=0.5"))
            while "b slow begins" not in server.lines():
                await anyio.sleep(0.02)
            await anyio.to_thread.run_sync(server.terminate)
            response = await asking
            assert response.status_code in (200, 303)
        server.start()
        while server.counts()["b after"] < 1:
            await anyio.sleep(0.05)
        assert server.counts()["b slow begins"] <= 2


async def test_a_second_process_on_the_same_file_is_refused(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        second = Server(tmp_path, DURABLE_ENDPOINTS_DRAIN_TIMEOUT="1s")
        began = time.monotonic()
        second.start(ready=False)
        assert server.process is not None
        owner = server.process.pid
        assert second.wait(25) != 0
        assert time.monotonic() - began > 9
        assert f"pid {owner}" in server.log()
        assert "DURABLE_ENDPOINTS_DATABASE" in server.log()
        assert httpx.get(f"{server.url}/alive").status_code == 200


async def test_a_second_process_takes_over_from_one_that_goes(tmp_path: Path) -> None:
    with Server(tmp_path) as first:
        second = Server(tmp_path)
        second.start(ready=False)
        await anyio.sleep(1)
        first.terminate()
        second.wait_until_ready()
        second.kill()


# Clients that leave


async def _leave(server: Server, request: bytes, when: str) -> None:
    stream = await anyio.connect_tcp("127.0.0.1", server.port)
    await stream.send(request)
    while when not in server.lines():
        await anyio.sleep(0.01)
    await stream.aclose()


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_a_client_that_leaves_does_not_stop_the_run(tmp_path: Path, http: str) -> None:
    with Server(tmp_path, "--http", http) as server:
        head = b"GET /slow/a?seconds=0.5 HTTP/1.1\r\nhost: a\r\nidempotency-key: k\r\n\r\n"
        await _leave(server, head, "a slow begins")
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            headers = {"idempotency-key": "k"}
            answer = await client.get("/slow/a?seconds=0.5", headers=headers)
            assert answer.json() == "slow after"
        assert server.counts() == {"a slow begins": 1, "a slow ends": 1, "a after": 1}


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_a_stream_is_kept_whole_when_its_client_leaves(tmp_path: Path, http: str) -> None:
    with Server(tmp_path, "--http", http) as server:
        head = b"GET /stream/a HTTP/1.1\r\nhost: a\r\nidempotency-key: k\r\n\r\n"
        await _leave(server, head, "a before")
        while "a streamed" not in server.lines():
            await anyio.sleep(0.02)
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            answer = await client.get("/stream/a", headers={"idempotency-key": "k"})
            assert answer.content == b"".join(b"%d\n" % n * 100 for n in range(10))
        assert server.counts() == {"a before": 1, "a streamed": 1}


async def test_a_client_that_leaves_in_its_upload_starts_nothing(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        stream = await anyio.connect_tcp("127.0.0.1", server.port)
        await stream.send(
            b"POST /upload/a HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n" + b"x" * 500
        )
        await anyio.sleep(0.2)
        await stream.aclose()
        await anyio.sleep(0.2)
        assert server.lines() == []
        response = httpx.post(f"{server.url}/upload/b", content=b"x" * 100_000)
        assert response.json() == 100_000


async def test_plain_handlers_over_a_real_socket(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            answers = await asyncio.gather(
                *(client.get(f"/blocking/{n}", follow_redirects=True) for n in range(60))
            )
            assert [answer.json() for answer in answers] == [f"blocking {n}" for n in range(60)]
        assert set(server.counts().values()) == {1}
