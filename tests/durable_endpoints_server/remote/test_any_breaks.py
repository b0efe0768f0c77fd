"""Breaks at any point, any number of them: a process says again what was not confirmed."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from durable_endpoints.protocol.wire import Frame
from durable_endpoints.testing import VirtualClock
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.store.sqlite import SqliteStore
from tests.durable_endpoints_server.remote.fakes import (
    FakeProcess,
    RemoteHost,
    chunks,
    done,
    end,
    memo,
    nap,
    push,
    record,
    register,
    resume,
    started,
    step_id,
    stored,
)

pytestmark = pytest.mark.anyio

STEPS = 6
SEEDS = int(os.environ.get("BREAKS_TO_TRY", "12"))


def script(run: str) -> list[Frame]:
    """A run of some steps, each of which streams, with a sleep that goes on beside them."""
    frames = [register(run), record(run, 2, nap("z", 1_000_000)), push(run, 0, '"begin"')]
    for n in range(STEPS):
        key = step_id(f"s{n}").hash
        frames.append(push(run, 0, f'"{n}a"', f'"{n}b"', step=key, attempt=1))
        frames.append(push(run, 2, f'"{n}c"', step=key, attempt=1))
        frames.append(record(run, 3 + n, done(f"s{n}")))
        frames.append(push(run, 1 + n, f'"after {n}"'))
    return [*frames, end(run, 3 + STEPS)]


CHUNKS = [
    '"begin"',
    *(f'"{part}"' for n in range(STEPS) for part in (f"{n}a", f"{n}b", f"{n}c", f"after {n}")),
]


class Model(FakeProcess):
    """Keeps what was not confirmed, and says it again on each new connection."""

    def __init__(self, server: RemoteHost, run: str) -> None:
        super().__init__(server)
        self.run = run
        self.left = script(run)
        self.kept: list[Frame] = []
        self.confirmed = 0
        self.counts: dict[tuple[str, int, int], int] = {}

    async def say_next(self) -> None:
        count = random.randint(1, 4)
        frames, self.left = self.left[:count], self.left[count:]
        self.kept += frames
        await self.say(*frames)

    def take_in(self) -> None:
        """Look at what was confirmed on the connection that is now."""
        for frame in self.heard:
            if frame[0] == "ack" and frame[1] == self.run:
                self.confirmed = max(self.confirmed, frame[2])
            elif frame[0] == "written" and frame[1] == self.run:
                self.counts |= {(step, attempt, kind): n for step, attempt, kind, n in frame[3]}
        self.kept = [frame for frame in self.kept if not self._is_confirmed(frame)]

    def _is_confirmed(self, frame: Frame) -> bool:
        if frame[0] != "push":
            return bool(frame[2] <= self.confirmed)
        last = frame[5] + len(frame[6])
        return self.counts.get((frame[2], frame[3], frame[4]), 0) >= last

    async def again(self, server: RemoteHost) -> None:
        self.take_in()
        leaving = any(frame[0] == "leave" for frame in self.kept)
        back = resume(self.run, 1, self.confirmed, leaving=leaving, base=0)
        await self.come_back(server, *([back, *self.kept] if self.kept or self.left else []))


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_a_run_happens_once_whatever_breaks(seed: int, tmp_path: Path) -> None:
    random.seed(seed)
    clock = VirtualClock()
    store = SqliteStore(tmp_path / "runs.db")
    server = await started(store, clock, "boot/0")
    model = Model(server, "r")
    await model.hello()
    breaks = 0
    async with asyncio.timeout(20):
        while model.left or model.kept:
            if model.left:
                await model.say_next()
            if (turns := random.choice((0, 1, 3, 10, 30, 100))) < 100:
                for _ in range(turns):
                    await asyncio.sleep(0)
            else:
                await asyncio.sleep(0.005)
            match random.randint(0, 9):
                case 0:
                    model.end.cut()
                    await model.again(server)
                case 1:
                    breaks += 1
                    await server.kill()
                    await store.close()
                    store = SqliteStore(tmp_path / "runs.db")
                    server = await started(store, clock, f"boot/{breaks}")
                    await model.again(server)
                case _:
                    model.take_in()
            assert model.all("refused") == model.all("stopped") == []
    run = await stored(store, "r")
    assert (run.status, run.generation, run.steps) == (Status.COMPLETED, 1, STEPS + 1)
    assert set(await memo(store, "r")) == {"z", *(f"s{n}" for n in range(STEPS))}
    assert await chunks(store, "r") == CHUNKS
    await server.stop()
