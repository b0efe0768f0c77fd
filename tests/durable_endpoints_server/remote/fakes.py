"""A process of an SDK that says what it is told to say, and servers that it can be connected to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from durable_endpoints.protocol import wire
from durable_endpoints.protocol.ops import (
    Alternative,
    Sleep,
    StepDone,
    StepKind,
    StepOp,
    StepRetry,
    WaitForEvent,
)
from durable_endpoints.protocol.runs import Complete, NewRun
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints.protocol.wire import Frame
from durable_endpoints.testing import VirtualClock
from durable_endpoints_server.engine.model import Run, Status
from durable_endpoints_server.host import Host, HostOptions
from durable_endpoints_server.remote.hub import Hub, HubOptions
from durable_endpoints_server.remote.transport import TransportClosedError
from durable_endpoints_server.store.base import Store
from tests.durable_endpoints_server.remote.ends import MemoryEnd, memory_pair

LEASE = 30_000


class RemoteHost:
    """A server without HTTP: a host and its hub."""

    def __init__(self, store: Store, clock: VirtualClock, name: str = "boot/server") -> None:
        self.host = Host(store, HostOptions(name, executes_runs=False), clock)
        self.hub = Hub(self.host, HubOptions(lease=LEASE))
        self.host.is_executed_elsewhere = self.hub.keeps
        self.host.dispatcher.place_by(self.hub.place)
        self._serving: list[asyncio.Task[None]] = []
        self._ends: list[MemoryEnd] = []

    def connect(self) -> MemoryEnd:
        """The far end of a new connection."""
        near, far = memory_pair()
        self._ends.append(near)
        self._serving.append(asyncio.ensure_future(self.hub.serve(near)))
        return far

    async def stop(self) -> None:
        """End as a process does that has time to."""
        self.hub.close()
        await asyncio.sleep(0.01)
        await self._end()
        await self.host.stop()

    async def kill(self) -> None:
        """End at once: nothing more is written or said. The store goes on."""
        for end in self._ends:
            end.cut()
        self.hub.close()
        await self._end()
        self.host.draining = True
        if self.host._services is not None:
            await self.host._services.cancel()
        await self.host.tasks.cancel()

    async def _end(self) -> None:
        await asyncio.gather(*self._serving, return_exceptions=True)


async def started(store: Store, clock: VirtualClock, name: str = "boot/server") -> RemoteHost:
    """A server that serves until it is stopped or killed."""
    server = RemoteHost(store, clock, name)
    await server.host.attach()
    return server


@asynccontextmanager
async def serving(
    store: Store, clock: VirtualClock, name: str = "boot/server"
) -> AsyncIterator[RemoteHost]:
    server = await started(store, clock, name)
    try:
        yield server
    finally:
        await server.stop()


class FakeProcess:
    """A process that speaks frames, and keeps what it is told."""

    def __init__(self, server: RemoteHost, name: str = "p1", app: str = "shop") -> None:
        self.name = name
        self.app = app
        self.end: MemoryEnd = server.connect()
        self.heard: list[Frame] = []
        self.closed: TransportClosedError | None = None
        self._listening = asyncio.ensure_future(self._listen(self.end))

    async def hello(self, resumes: Sequence[Frame] = (), capacity: int = 10) -> None:
        await self.say(
            ["hello", {"process": self.name, "app": self.app, "sdk": "1", "draining": False}],
            *resumes,
            ["resumed"],
            ["executors", {"root_paths": [""], "default": True, "capacity": capacity}],
        )
        await self.until("welcome")

    async def begin(self, run: str) -> None:
        """Register a run, which it executes. Returns when it was told that this is on disk."""
        await self.say(register(run))
        await self.acked(run, 1)

    async def come_back(self, server: RemoteHost, *resumes: Frame) -> None:
        """Open another connection, forgetting what was heard before."""
        self.end, self.heard, self.closed = server.connect(), [], None
        self._listening = asyncio.ensure_future(self._listen(self.end))
        await self.hello(resumes)

    async def say(self, *frames: Frame) -> None:
        """Say something, in one message."""
        await self.end.send(wire.encode(frames).decode())

    async def _listen(self, end: MemoryEnd) -> None:
        try:
            while True:
                heard = wire.decode(await end.receive())
                if end is self.end:
                    self.heard += heard
        except TransportClosedError as error:
            if end is self.end:
                self.closed = error

    def all(self, name: str, about: Any = None) -> list[Frame]:
        """What it has heard of this kind, about this run or question."""
        return [
            frame
            for frame in self.heard
            if frame[0] == name and (about is None or frame[1] == about)
        ]

    async def until(
        self, name: str, about: Any = None, that: Callable[[Frame], bool] = lambda frame: True
    ) -> Frame:
        """The first frame of this kind, once it is there."""
        async with asyncio.timeout(3):
            while True:
                found = [frame for frame in self.all(name, about) if that(frame)]
                if found:
                    return found[0]
                assert self.closed is None or name == "closed", self.closed
                await asyncio.sleep(0.001)

    async def acked(self, run: str, number: int) -> None:
        await self.until("ack", run, lambda frame: frame[2] >= number)

    async def executes(self, run: str) -> dict[str, Any]:
        """What it is given of a run, once it is to execute it."""
        frame = await self.until("execute", that=lambda frame: frame[1]["run"] == run)
        found: dict[str, Any] = frame[1]
        return found

    async def until_closed(self) -> TransportClosedError:
        async with asyncio.timeout(3):
            while self.closed is None:
                await asyncio.sleep(0.001)
        return self.closed


async def joined(
    server: RemoteHost, name: str = "p1", app: str = "shop", capacity: int = 10
) -> FakeProcess:
    """A process that is welcome, and has nothing yet."""
    process = FakeProcess(server, name, app)
    await process.hello(capacity=capacity)
    return process


def new_run(run_id: str, **options: Any) -> NewRun:
    return NewRun(run_id, "GET /x", "v1", "GET", "/x", b"sealed", **options)


def step_id(name: str) -> StepId:
    return StepId(hash_name(name), name, 0)


def done(name: str, value: bytes = b"1", attempt: int = 1) -> StepOp:
    return StepDone(step_id(name), StepKind.RUN, value, attempt)


def failed(name: str, attempt: int) -> StepOp:
    return StepRetry(step_id(name), StepKind.RUN, b"{}", attempt, 0, 1_000_000)


def nap(name: str, duration: int) -> StepOp:
    return Sleep(step_id(name), duration)


def wait(name: str, event: str, timeout: int = 60_000) -> StepOp:
    return WaitForEvent(step_id(name), StepKind.WAIT, (Alternative("", event),), timeout)


# Frames


def register(run: str, **options: Any) -> Frame:
    return ["register", run, 1, wire.pack_new_run(new_run(run, **options))]


def record(run: str, number: int, op: StepOp) -> Frame:
    return ["record", run, number, wire.pack_op(op)]


def end(run: str, number: int, body: bytes = b"answer") -> Frame:
    return ["leave", run, number, "end", wire.pack_end(Complete(200, body))]


def suspend(run: str, number: int, seen: int = 0) -> Frame:
    return ["leave", run, number, "suspend", seen]


def push(run: str, ordinal: int, *values: str, step: str = "", attempt: int = 0) -> Frame:
    return ["push", run, step, attempt, 1, ordinal, list(values)]


def resume(run: str, generation: int = 1, acked: int = 0, **options: Any) -> Frame:
    return ["resume", run, generation, acked, options]


# Looking


async def stored(store: Store, run_id: str) -> Run:
    run = await store.run(run_id)
    assert run is not None
    return run


async def until_status(store: Store, run_id: str, *statuses: Status) -> Run:
    async with asyncio.timeout(3):
        while True:
            run = await store.run(run_id)
            if run is not None and run.status in statuses:
                return run
            await asyncio.sleep(0.001)


async def memo(store: Store, run_id: str) -> dict[str, bytes | None]:
    entry = await store.entry(run_id)
    assert entry is not None
    return {str(step.id): step.value for step in entry.memo}


async def chunks(store: Store, run_id: str) -> list[str]:
    """Every chunk in the stream log of a run, in order."""
    page = await store.stream_page(run_id, 0, 2**40)
    assert page is not None
    positions = [(record.position, record.length) for record in page.records]
    following = 1
    for position, length in positions:
        assert position == following, positions
        following += length
    return [
        chunk.decode()
        for record in page.records
        if not record.kind.is_end
        for chunk in record.chunks()
    ]


async def pass_time(clock: VirtualClock, milliseconds: int) -> None:
    """Let time pass, alarm by alarm."""
    until = clock.now() + milliseconds
    while (instant := clock.next_alarm()) is not None and instant <= until:
        clock.move_to(instant)
        await asyncio.sleep(0.002)
    clock.move_to(until)
    await asyncio.sleep(0.002)
