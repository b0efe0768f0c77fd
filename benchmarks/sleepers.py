"""Ten thousand sleeping runs, or more: how late they wake up, and what they cost meanwhile."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import apsw
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from benchmarks.in_process import call, durable_app
from benchmarks.options import Options
from benchmarks.report import heading, percentile, spread, table
from durable_endpoints import endpoint, step

DUE = 1_000
_FAR = 86_400_000
_WARM = 5_000
_LEAD = 3
"""How many times as long as it takes to put them to sleep, runs have until the first is due."""


_SPREADS = {f"{DUE:,} due within 1 s": 1_000, f"{DUE:,} due at once": 0}
"""Milliseconds over which they are due."""


class Sleepers:
    """An endpoint that sleeps until an instant of its query, and notes how late it went on."""

    def __init__(self) -> None:
        self.lags: list[float] = []
        self.lead = 0
        """Milliseconds in which `DUE` runs can be put to sleep before the first is due."""
        self.route = Route("/{until:int}", endpoint(self._handle))

    async def _handle(self, request: Request) -> Response:
        until = request.path_params["until"]
        await step.sleep_until("nap", datetime.fromtimestamp(until / 1_000, UTC))
        self.lags.append(time.time() * 1_000 - until)
        if len(self.lags) == DUE:
            self._all_awake.set()
        return PlainTextResponse("awake")

    async def lag(self, app: ASGIApp, within: int) -> tuple[list[float], float]:
        """How late `DUE` runs are that are due within `within` milliseconds, and how many
        microseconds of processor time each wake took, until the handler was past its sleep."""
        self.lags = []
        self._all_awake = asyncio.Event()
        first = int(time.time() * 1_000) + self.lead
        instants = [first + number * within // DUE for number in range(DUE)]
        await put_to_sleep(app, instants)
        assert time.time() * 1_000 < first, "this machine is too slow for the lead it gets"
        await asyncio.sleep(max(0.0, first / 1_000 - time.time() - 0.1))
        before = time.process_time()
        await self._all_awake.wait()
        return self.lags, (time.process_time() - before) / DUE * 1e6


async def put_to_sleep(app: ASGIApp, instants: list[int]) -> None:
    for start in range(0, len(instants), 50):
        turn = instants[start : start + 50]
        answers = await asyncio.gather(*(call(app, f"/{instant}") for instant in turn))
        assert all(answer["status"] == 303 for answer in answers)


def disk(database: Path) -> dict[str, int]:
    """Bytes of each table and index, what is still in the write-ahead log included."""
    connection = apsw.Connection(str(database))
    found = connection.execute("select name, sum(pgsize) from dbstat group by name")
    sizes = {str(name): int(size) for name, size in found}
    connection.close()
    return sizes


def resident() -> float:
    """This process's memory in MB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def measure_all(folder: Path, options: Options) -> None:
    count = options.sleepers
    sleepers = Sleepers()
    database = folder / "sleepers.db"
    async with durable_app(database, sleepers.route) as app:
        far = int(time.time() * 1_000) + _FAR
        began = time.perf_counter()
        await put_to_sleep(app, [far] * _WARM)  # caches are warm after these
        sleepers.lead = int((time.perf_counter() - began) / _WARM * DUE * _LEAD * 1_000) + 500
        before, empty = resident(), disk(database)
        await put_to_sleep(app, [far + number for number in range(count)])
        after = resident()
        gc.freeze()
        print(f"memory of {count:,} sleepers: {after - before:+.1f} MB (of {after:.0f} MB)")
        grown = {name: size - empty.get(name, 0) for name, size in disk(database).items()}
        each = {name: size / count for name, size in grown.items() if size > count}
        print(f"disk: {sum(grown.values()) / 1e6:.1f} MB, {sum(each.values()):.0f} bytes each:")
        print(", ".join(f"{name} {size:.0f}" for name, size in each.items()), flush=True)
        rounds: dict[str, list[list[float]]] = {name: [] for name in _SPREADS}
        for _ in range(options.rounds):
            for name, milliseconds in _SPREADS.items():
                lags, spent = await sleepers.lag(app, milliseconds)
                assert min(lags) >= 0, "a sleep ended early"
                late = [percentile(lags, percent) for percent in (50, 95, 100)]
                rounds[name].append([*late, spent])
    rows = [
        (name, *(spread(values, "{:.1f}") for values in zip(*found, strict=True)))
        for name, found in rounds.items()
    ]
    heading(f"Sleeping runs, in process, beside {count:,} that sleep on")
    table(("lag in ms", "p50", "p95", "max", "CPU us a wake"), rows)


def measure(folder: Path, options: Options) -> None:
    asyncio.run(measure_all(folder, options))
