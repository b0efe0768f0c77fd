"""`python -m benchmarks growth --runs 10000000`: bytes of each table, and how fast the server's
questions, its start and its retention are beside so many runs.

Rows are copies of those of a real workload, in the schema of the migrations. They are measured at
ten thousand runs, a hundred thousand, a million, and at the number that is asked for. Before that,
the operating system forgets what it knows of the file: what is asked for the first time comes from
the disk, what is asked again does not.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ulid import ULID

from benchmarks.growth import workload
from benchmarks.growth.multiplying import Growing
from benchmarks.growth.questions import TURNS, Question, questions
from benchmarks.options import Options
from benchmarks.report import heading, percentile, table
from benchmarks.sleepers import resident
from durable_endpoints.engines.embedded import EmbeddedEngine
from durable_endpoints.protocol.runs import Complete, NewRun
from durable_endpoints.settings import Settings
from durable_endpoints_server.engine.transitions import decide, register
from durable_endpoints_server.host import Host
from durable_endpoints_server.retention import Sweeper

STAGES = (10_000, 100_000, 1_000_000)
SWEPT = 20_000
"""Runs that are past their retention when that is measured, at the most."""
_WEEK = 7 * 86_400_000
_FORGET = """
import os, sys
file = os.open(sys.argv[1], os.O_RDWR)
os.fsync(file)
os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
"""
"""In a process of its own: whoever closes a second descriptor of the file loses SQLite's locks."""


class Found(NamedTuple):
    """What was measured at one size, each by its name."""

    first: dict[str, str]
    again: dict[str, str]
    others: dict[str, str]
    sizes: dict[str, str]


def measure(folder: Path, options: Options) -> None:
    template, path = folder / "workload.db", folder / "grown.db"
    asyncio.run(workload.make(template))
    growing = Growing(path, template, options.runs)
    stages: dict[int, Found] = {}
    for size in sorted({size for size in (*STAGES, options.runs) if size <= options.runs}):
        growing.grow_to(size)
        stages[size] = measure_one(path, growing)
    growing.close()
    show(stages)


def measure_one(path: Path, growing: Growing) -> Found:
    """Measure a database that has grown."""
    print(f"{growing.runs:,} runs, {path.stat().st_size / 1e9:.2f} GB", flush=True)
    sizes = {
        name: f"{size / growing.runs:.1f}"
        for name, size in [("all", path.stat().st_size), *growing.sizes()]
        if size > growing.runs
    }
    subprocess.run([sys.executable, "-c", _FORGET, str(path)], check=True)
    return Found(*asyncio.run(_measure_engine(path, growing)), sizes)


def show(stages: dict[int, Found]) -> None:
    for title, part in (
        ("A database that grows: p50 / p95 in ms of what is asked for the first time", "first"),
        ("The same questions once more: p50 / p95 in ms", "again"),
        ("Others: p50 / p95 in ms, unless it says otherwise", "others"),
        ("Bytes a run", "sizes"),
    ):
        cells = [getattr(found, part) for found in stages.values()]
        heading(title)
        table(
            ("", *(f"{size:,} runs" for size in stages)),
            [(name, *(cell.get(name, "") for cell in cells)) for name in cells[-1]],
        )


async def _measure_engine(
    path: Path, growing: Growing
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    before = resident()
    began = time.perf_counter()
    engine = EmbeddedEngine(Settings(database=str(path), event_retention=_WEEK))
    await engine.start(for_good=True)
    host = engine.host
    while host.recovery.is_behind:  # noqa: ASYNC110, nothing tells when it is done
        await asyncio.sleep(0.001)
    others = {
        "start, with recovery, ms": f"{(time.perf_counter() - began) * 1e3:.0f}",
        "memory that it takes, MB": f"{resident() - before:.1f}",
    }
    first: dict[str, str] = {}
    again: dict[str, str] = {}
    for name, asked in questions(host, growing).items():
        first[name] = _percentiles(await _timed(asked))
        again[name] = _percentiles(await _timed(asked))
    others["a commit"] = _percentiles(await _commits(host, TURNS))
    others.update(await _sweep(host, growing))
    await engine.stop()
    return first, again, others


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
    growing.swept += count  # those of the sizes before are gone
    oldest = int(growing.began + growing.swept * growing.step)
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
