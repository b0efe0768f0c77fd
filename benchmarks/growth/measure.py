"""`python -m benchmarks growth --runs 10000000`: bytes of each table, and how fast the server's
statements, its start and its retention are beside so many runs.

Rows are copies of those of a real workload, in the schema of the migrations. They are measured at
ten thousand runs, at a million, and at the number that is asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from ulid import ULID

from benchmarks.growth import workload
from benchmarks.growth.multiplying import Growing
from benchmarks.options import Options
from benchmarks.report import heading, percentile, table
from benchmarks.sleepers import resident
from durable_endpoints.engines.embedded import EmbeddedEngine
from durable_endpoints.protocol.runs import Complete, NewRun
from durable_endpoints.settings import Settings
from durable_endpoints_server.engine.model import Event, Status
from durable_endpoints_server.engine.transitions import decide, register
from durable_endpoints_server.host import Host
from durable_endpoints_server.retention import Sweeper

STAGES = (10_000, 100_000, 1_000_000)
TURNS = 200
SWEPT = 20_000
"""Runs that are past their retention when that is measured, at the most."""
_WEEK = 7 * 86_400_000

Question = Callable[[], Awaitable[object]]


def measure(folder: Path, options: Options) -> None:
    runs = options.runs
    template, path = folder / "workload.db", folder / "grown.db"
    asyncio.run(workload.make(template))
    growing = Growing(path, template, runs)
    columns: dict[str, dict[int, str]] = {}
    sizes = sorted({size for size in (*STAGES, runs) if size <= runs})
    for size in sizes:
        growing.grow_to(size)
        print(f"{growing.runs:,} runs, {path.stat().st_size / 1e9:.2f} GB", flush=True)
        found = asyncio.run(_measure_one(path, growing, size))
        for name, cell in found.items():
            columns.setdefault(name, {})[size] = cell
    heading("A database that grows: p50 / p95 in ms, unless it says otherwise")
    table(
        ("", *(f"{size:,} runs" for size in sizes)),
        [(name, *(cells.get(size, "") for size in sizes)) for name, cells in columns.items()],
    )
    heading(f"Bytes a run, at {growing.runs:,} runs")
    table(
        ("", "bytes", "GB"),
        [
            (name, f"{size / growing.runs:.1f}", f"{size / 1e9:.2f}")
            for name, size in growing.sizes()
            if size > growing.runs / 10
        ],
    )
    growing.close()


async def _measure_one(path: Path, growing: Growing, size: int) -> dict[str, str]:
    before = resident()
    began = time.perf_counter()
    engine = EmbeddedEngine(Settings(database=str(path), event_retention=_WEEK))
    await engine.start(for_good=True)
    host = engine.host
    while host.recovery.is_behind:  # noqa: ASYNC110, nothing tells when it is done
        await asyncio.sleep(0.001)
    found = {
        "start, with recovery, ms": f"{(time.perf_counter() - began) * 1e3:.0f}",
        "memory that it takes, MB": f"{resident() - before:.1f}",
    }
    for name, asked in _questions(host, growing).items():
        found[name] = _percentiles(await _timed(asked))
    began = time.perf_counter()
    await host.store.list_runs([Status.PARKED], None, 20)
    found["all parked runs, of which there are none"] = f"{(time.perf_counter() - began) * 1e3:.0f}"
    found["a commit"] = _percentiles(await _commits(host, TURNS))
    found.update(await _sweep(host, growing))
    await engine.stop()
    return found


def _questions(host: Host, growing: Growing) -> dict[str, list[Question]]:
    """What the server asks, as often as it is timed."""
    store, now = host.store, host.clock.now()
    runs = growing.some_runs(TURNS)
    data = [f'{{"order":"{text}"}}'.encode() for text in growing.some_awaited(TURNS)]
    events = [Event(str(ULID()), "order/paid", value, now, now) for value in data]
    return {
        "a run for its next execution": [partial(store.entry, run) for run in runs],
        "an ended run's answer": [partial(store.ended, run) for run in runs],
        "the run of an idempotency key": [
            partial(store.key_holder, key) for key in growing.some_keys(TURNS)
        ],
        "the wait that an event ends": [partial(store.arrival, event) for event in events],
        "events since the run began, for its wait": [
            partial(store.unused_events, run, "order/paid", now - 60_000, "", 100) for run in runs
        ],
        "due steps": [partial(store.due_steps, now, 100)] * TURNS,
        "when the next is due": [store.next_due] * TURNS,
        "ready runs": [partial(store.in_status, Status.READY, 100)] * TURNS,
        "running runs": [partial(store.in_status, Status.RUNNING, 100)] * TURNS,
        "the newest 20 runs": [partial(store.list_runs, list(Status), None, 20)] * TURNS,
        "the newest 20 failed runs": [partial(store.list_runs, [Status.FAILED], None, 20)] * TURNS,
    }


async def _timed(questions: Sequence[Question]) -> list[float]:
    """Milliseconds of each."""
    times: list[float] = []
    for ask in questions:
        began = time.perf_counter()
        await ask()
        times.append((time.perf_counter() - began) * 1e3)
    return times


async def _commits(host: Host, count: int) -> list[float]:
    """Milliseconds of the registration and of the end of new runs, one after the other."""
    times: list[float] = []
    for _ in range(count // 2):
        new = NewRun(str(ULID()), "POST /x", "", "POST", "/x", b"x" * 300, retries=3)
        decision = register(new, host.owner, None, host.clock.now())
        end = decide(decision.run, Complete(200, b"x" * 100), host.clock.now(), host.policy)
        for change in (decision.change, end.change):
            began = time.perf_counter()
            await host.store.submit(change).wait()
            times.append((time.perf_counter() - began) * 1e3)
            await asyncio.sleep(0.001)
    return times


async def _sweep(host: Host, growing: Growing) -> dict[str, str]:
    """Retention's pace, and what writers feel of it."""
    count = min(SWEPT, growing.runs // 10)
    oldest = int(growing.began + count * growing.step)
    host.policy = host.policy._replace(run_retention=host.clock.now() - oldest)
    began = time.perf_counter()
    sweeping = asyncio.create_task(Sweeper(host, 1).sweep())
    times: list[float] = []
    while not sweeping.done():
        times += await _commits(host, 10)
    await sweeping
    pace = count / (time.perf_counter() - began)
    return {
        "a commit while retention deletes": _percentiles(times),
        "runs deleted per second": f"{pace:,.0f}",
    }


def _percentiles(times: Sequence[float]) -> str:
    return f"{percentile(times, 50):.2f} / {percentile(times, 95):.2f}"
