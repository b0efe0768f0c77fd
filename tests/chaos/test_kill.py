"""SIGKILL at random moments: each accepted request is answered, no acknowledged body runs again."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import anyio
import httpx
import pytest

from durable_endpoints.protocol.ops import StepState
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.store.sqlite_reader import SqliteReader
from tests.chaos.process import Server, persist

pytestmark = pytest.mark.anyio

KILLS = int(os.environ.get("DURABLE_TESTS_KILLS", "8"))
CLIENTS = 6


async def acknowledged(server: Server) -> dict[str, set[str]]:
    """What is on disk as done, while no process serves the file: steps by run."""
    reader = SqliteReader(server.database)
    try:
        done: dict[str, set[str]] = {}
        for line in (await reader.list_runs(list(Status), None, 100_000)).lines:
            entry = await reader.entry(line.run.id)
            assert entry is not None
            name = line.path.rpartition("/")[2]
            done.setdefault(name, set()).update(
                step.id.name for step in entry.memo if step.state is StepState.DONE
            )
        return done
    finally:
        reader.close_readers()


async def test_kill_nine(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    answers: dict[str, str] = {}
    done: dict[str, set[str]] = {}
    finished = 0
    stopping = False

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        nonlocal finished
        count = 0
        while not stopping:
            run = f"r{number}-{count}"
            kind = "work" if count % 3 else "quick"
            response = await persist(client, "POST", f"/{kind}/{run}", run)
            assert response.status_code == 200, response.text
            if kind == "work":
                assert response.text == f"{run} [10, 1, 2] True"
            else:
                assert response.text == f"quick {run}" * 50
            answers[run] = response.text
            count += 1
            finished += 1

    with Server(tmp_path, "--no-access-log") as server:
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=30) as client,
            anyio.create_task_group() as group,
        ):
            for number in range(CLIENTS):
                group.start_soon(ask, client, number)
            for _ in range(KILLS):
                await anyio.sleep(chance.uniform(0.02, 0.6))
                server.kill()
                before = len(server.lines())
                for run, steps in (await acknowledged(server)).items():
                    done.setdefault(run, set()).update(steps)
                await anyio.to_thread.run_sync(server.start)
                for line in server.lines()[before:]:
                    run, _, name = line.partition(" ")
                    assert name not in done.get(run, ()), f"{line} ran again (seed {seed})"
            stopping = True
        # Whoever was answered gets the same answer again.
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            for run, text in list(answers.items())[-20:]:
                kind = "quick" if text.startswith("quick") else "work"
                assert (await persist(client, "POST", f"/{kind}/{run}", run)).text == text
        server.kill()
        final = await acknowledged(server)
    assert finished > KILLS
    # Nothing that was on disk at any kill was lost.
    for run, steps in done.items():
        assert steps <= final[run], f"{run} lost {steps - final[run]} (seed {seed})"


async def test_kill_parents_and_children(tmp_path: Path) -> None:
    """Each child runs to one end, which its parent sees, and none is begun twice or left over."""
    chance = random.Random(seed := random.randrange(10**6))
    answers: dict[str, str] = {}
    stopping = False

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        count = 0
        while not stopping:
            run = f"f{number}-{count}"
            answers[run] = (await persist(client, "POST", f"/family/{run}", run)).text
            count += 1

    with Server(tmp_path, "--no-access-log") as server:
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=30) as client,
            anyio.create_task_group() as group,
        ):
            for number in range(3):
                group.start_soon(ask, client, number)
            for _ in range(max(1, KILLS // 8)):
                await anyio.sleep(chance.uniform(0.05, 0.3))
                server.kill()
                await anyio.to_thread.run_sync(server.start)
            stopping = True
        server.kill()
        reader = SqliteReader(server.database)
        try:
            assert await reader.orphans() == []
            runs = [
                line.run for line in (await reader.list_runs(list(Status), None, 100_000)).lines
            ]
            parents = {run.id: run for run in runs if run.parent_run is None}
            for run in parents.values():
                children = await reader.children(run.id)
                assert len(children) == 3, f"{run} (seed {seed})"
                assert {child.status for child in (run, *children)} == {Status.COMPLETED}
        finally:
            reader.close_readers()
    assert len(answers) == len(parents) > 0
    assert {run: f'"{run} [0, 1, 2]"' for run in answers} == answers


async def test_kill_at_the_last_byte(tmp_path: Path) -> None:
    """A client that has the whole answer has one that is on disk."""
    with Server(tmp_path, "--no-access-log") as server:
        for n in range(max(4, KILLS // 2)):
            answer = await _raw_post(server, f"/quick/last-{n}", key=f"last-{n}", then_kill=True)
            assert answer.endswith((f"quick last-{n}" * 50).encode())
            done = await acknowledged(server)
            assert "only" in done[f"last-{n}"]
            server.start()
            again = httpx.post(
                f"{server.url}/quick/last-{n}",
                headers={"idempotency-key": f"last-{n}"},
                content=b"",
            )
            assert again.text.encode() == answer.partition(b"\r\n\r\n")[2]
            run_id = re.search(rb"durable-run-id: (\w+)", answer)
            assert run_id is not None
            assert again.headers["durable-run-id"] == run_id[1].decode()
        assert set(server.counts().values()) == {1}


async def _raw_post(server: Server, path: str, key: str, then_kill: bool) -> bytes:
    """POST over a bare socket, and kill the server with the last byte in hand."""
    stream = await anyio.connect_tcp("127.0.0.1", server.port)
    async with stream:
        head = f"POST {path} HTTP/1.1\r\nhost: a\r\nidempotency-key: {key}\r\ncontent-length: 0"
        await stream.send(f"{head}\r\n\r\n".encode())
        answer = b""
        while True:
            answer += await stream.receive()
            headers, separator, body = answer.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", headers)
            if separator and length is not None and len(body) >= int(length[1]):
                break
        if then_kill:
            server.kill()
        return answer


async def test_a_sleeping_run_wakes_in_the_next_process(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            response = await client.get("/nap/a?seconds=1")
            location = response.headers["location"]
            server.kill()
            await anyio.sleep(1.2)
            server.start()
            assert (await client.get(location)).json() == "rested a"
        assert server.counts() == {"a before": 1, "a after": 1}


async def test_an_event_from_another_process_while_the_application_is_down(tmp_path: Path) -> None:
    """It is in the inbox, and it beats a timeout that would have come later."""
    import subprocess
    import sys

    with Server(tmp_path) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            response = await client.get("/wait-for/a")
            location = response.headers["location"]
            server.kill()
            command = ["events", "send", "go", '{"run": "a", "n": 1}']
            subprocess.run(
                [sys.executable, "-m", "durable_endpoints_server", *command],
                env=server._env,
                check=True,
            )
            server.start()
            assert (await client.get(location)).json() == {"run": "a", "n": 1}
            # And one while it runs.
            response = await client.get("/wait-for/b")
            script = (
                "import anyio, durable_endpoints as d; "
                "anyio.run(lambda: d.send_event('go', {'run': 'b'}))"
            )
            subprocess.run([sys.executable, "-c", script], env=server._env, check=True)
            answer = await client.get(response.headers["location"])
            assert answer.json() == {"run": "b"}
