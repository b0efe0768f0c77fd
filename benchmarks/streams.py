"""Streams: tokens per second, time to the first byte, many readers, many streams, late joiners."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import httpx

from benchmarks.options import Options
from benchmarks.report import heading, percentile, spread, table
from benchmarks.servers import Server
from durable_endpoints.testing import AppTransport
from durable_endpoints_server.store.sqlite import SqliteStore

TOKENS = 10_000
REPLAYED = 100_000
READERS = 1_000
_TICK = re.compile(rb'"data":([0-9]{6,})')


class Reading(asyncio.Protocol):
    """One request with a raw socket, so that the client costs little beside the server."""

    def __init__(self, path: str, on_data: Callable[[bytes, int], None] | None = None) -> None:
        self.head = b""
        self.size = 0
        self.began = self.head_at = self.first = self.last = 0
        self.started = asyncio.Event()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._path = path
        self._on_data = on_data
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.began = time.monotonic_ns()
        head = f"GET {self._path} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"
        transport.write(head.encode())  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if b"\r\n\r\n" not in self.head:
            self.head += data
            if b"\r\n\r\n" in self.head:
                self.started.set()
        self.head_at = self.head_at or now
        if not self.first and b"event: inngest.stream" in data:
            self.first = now
        self.size += len(data)
        if self._on_data is not None:
            self._on_data(data, now)
        if (self._tail + data).endswith(b"0\r\n\r\n"):
            self.last = now
            self.transport.close()
        self._tail = data[-8:]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)

    @property
    def seconds(self) -> float:
        return (self.last - self.began) / 1e9

    @property
    def to_head(self) -> float:
        """Milliseconds to the first byte."""
        return (self.head_at - self.began) / 1e6

    @property
    def to_first(self) -> float:
        """Milliseconds to the first token."""
        return (self.first - self.began) / 1e6


async def read(
    server: Server, path: str, on_data: Callable[[bytes, int], None] | None = None
) -> Reading:
    reading = await begin(server, path, on_data)
    await reading.done
    assert reading.last, "the stream broke off"
    return reading


async def begin(
    server: Server, path: str, on_data: Callable[[bytes, int], None] | None = None
) -> Reading:
    loop = asyncio.get_running_loop()
    _, reading = await loop.create_connection(
        lambda: Reading(path, on_data), "127.0.0.1", server.port
    )
    return reading


def run_url(reading: Reading) -> str:
    found = re.search(rb"durable-run-url: (\S+)", reading.head)
    assert found is not None
    return found[1].decode()


async def throughput(bare: Server, durable: Server, rounds: int) -> None:
    path = f"/tokens/{TOKENS}"
    times: dict[str, list[float]] = {"bare": [], "durable": []}
    slow: dict[str, list[Reading]] = {"bare": [], "durable": []}
    for name, server in (("bare", bare), ("durable", durable)):
        await read(server, path)
        slow[name] = [await read(server, "/slow") for _ in range(60)][20:]
    for _ in range(rounds):
        for name, server in (("bare", bare), ("durable", durable)):
            reading = await read(server, path)
            times[name].append(reading.seconds)
    shares = [100 * b / d for b, d in zip(times["bare"], times["durable"], strict=True)]
    heading(f"One stream of {TOKENS:,} tokens")
    rows = [
        (
            name,
            spread([1_000 * t for t in times[name]], "{:.0f}"),
            f"{TOKENS / median(times[name]):,.0f}",
            spread([reading.to_head for reading in slow[name]]),
            spread([reading.to_first for reading in slow[name]]),
        )
        for name in times
    ]
    table(("", "ms", "tokens/s", "first byte, ms", "first token, ms"), rows)
    print(f"share of bare: {spread(shares, '{:.0f}')} %")


async def replay(bare: Server, durable: Server, rounds: int) -> None:
    first = await read(durable, f"/tokens/{REPLAYED}")
    url = run_url(first)
    times: dict[str, list[float]] = {"bytes from memory": [], "replay": []}
    for _ in range(rounds):
        times["bytes from memory"].append((await read(bare, f"/bytes/{REPLAYED}")).seconds)
        late = await read(durable, url)
        assert late.size > 100 * REPLAYED
        times["replay"].append(late.seconds)
    heading(f"{REPLAYED:,} chunks for a late joiner")
    table(
        ("", "ms"),
        [(name, spread([1_000 * t for t in ts], "{:.0f}")) for name, ts in times.items()],
    )


async def fan_out(durable: Server) -> None:
    """One stream, many readers: how late each gets each chunk, and what a reader costs."""
    delays: list[float] = []
    before = durable.resident()
    first = await begin(durable, "/ticks/16/0.5")
    await first.started.wait()
    readers = [await begin(durable, run_url(first), _noting(delays)) for _ in range(READERS)]
    await asyncio.sleep(0.5)
    during = durable.resident()
    delays.clear()
    await asyncio.gather(first.done, *(reader.done for reader in readers))
    heading(f"{READERS:,} readers of one stream, and {READERS:,} streams with one reader each")
    rows = [_row("readers of one", delays, (during - before) / READERS)]
    await asyncio.sleep(1)

    before = durable.resident()
    delays = []
    streams = [await begin(durable, "/ticks/20/0.5", _noting(delays)) for _ in range(READERS)]
    await asyncio.sleep(2)
    during = durable.resident()
    await asyncio.gather(*(reader.done for reader in streams))
    rows.append(_row("streams", delays, (during - before) / READERS))
    table(("", "chunks", "delay p50, ms", "p95", "max", "KB each"), rows)


def _noting(delays: list[float]) -> Callable[[bytes, int], None]:
    def note(data: bytes, now: int) -> None:
        delays.extend((now - int(tick)) / 1e6 for tick in _TICK.findall(data))

    return note


def _row(name: str, delays: list[float], size: float) -> tuple[str, ...]:
    percents = [f"{percentile(delays, percent):.1f}" for percent in (50, 95, 100)]
    return (name, f"{len(delays):,}", *percents, f"{size / 1e3:.1f}")


async def measure_sync(folder: Path) -> None:
    """How long after its delivery a chunk is on disk, in process."""
    from benchmarks.stream_apps import durable_stream
    from durable_endpoints.engines.embedded import EmbeddedEngine
    from durable_endpoints.settings import Settings

    published: list[float] = []
    lags: list[float] = []
    engine = EmbeddedEngine(Settings(database=str(folder / "sync.db")))
    app = durable_stream()
    app.user_middleware[0].kwargs["engine"] = engine
    await engine.start(for_good=True)
    store = engine.host.store
    assert isinstance(store, SqliteStore)
    sync, write = store._commits._sync, store._commits._write

    def on_disk() -> None:
        now, waiting = time.monotonic(), list(published)
        published.clear()
        lags.extend(now - instant for instant in waiting)

    def noted_sync() -> None:
        sync()
        on_disk()

    def noted_write(changes: list[object], is_relaxed: bool) -> object:
        found = write(changes, is_relaxed)  # type: ignore[arg-type]
        if is_relaxed:
            published.append(time.monotonic())
        else:
            on_disk()
        return found

    store._commits._sync, store._commits._write = noted_sync, noted_write  # type: ignore[assignment]
    async with httpx.AsyncClient(
        transport=AppTransport(app), base_url="http://x", timeout=60
    ) as client:
        headers = {"accept": "text/event-stream"}
        for path in (f"/tokens/{TOKENS}", "/ticks/200/0.005"):
            await client.get(path, headers=headers)
    await engine.stop()
    ms = [1_000 * lag for lag in lags]
    print(f"written -> on disk: p50 {median(ms):.1f} ms, max {max(ms):.1f} ms")


async def measure_all(folder: Path, rounds: int) -> None:
    with (
        Server("bare_stream", folder, "benchmarks.stream_apps") as bare,
        Server("durable_stream", folder, "benchmarks.stream_apps") as durable,
    ):
        await throughput(bare, durable, rounds)
        await measure_sync(folder)
        await replay(bare, durable, rounds)
        await fan_out(durable)


def measure(folder: Path, options: Options) -> None:
    asyncio.run(measure_all(folder, options.rounds))
