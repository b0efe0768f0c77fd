"""Three steps over real HTTP: the bare handler, the floor, and ours, with the engine in process and
in a companion server, interleaved in one run."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks import floor
from benchmarks.load import THREE_STEPS, Request
from benchmarks.options import Options
from benchmarks.report import heading, percentile, spread, table
from benchmarks.servers import (
    OVER_A_SERVER,
    VARIANTS,
    Companion,
    FloorServer,
    PythonProcess,
    Server,
)

CLIENTS = (1, 64)


@dataclass(frozen=True)
class Variant:
    """Something that answers a request which has three steps."""

    name: str
    port: int
    cpu_seconds: Callable[[], float]
    """Of all processes that have a part in it."""
    request: Request = THREE_STEPS


def measure(folder: Path, options: Options) -> None:
    """Print a table for each number of clients, and where the processor time goes at 64."""
    with ours(folder) as servers:
        interleaved([variant(server) for server in servers], options, folder)
        if options.is_profiled:
            for server in servers:
                _profile(server)


@contextmanager
def ours(folder: Path) -> Iterator[list[Server]]:
    """The bare handler, the floors, and ours in all ways."""
    with ExitStack() as stack:
        companion = Companion(folder)
        stack.enter_context(companion)
        servers = [Server(variant, folder) for variant in VARIANTS]
        far = FloorServer(folder)
        stack.enter_context(far)
        servers.append(Server("floor", folder, companion=far))
        servers += [Server(variant, folder, companion=companion) for variant in OVER_A_SERVER]
        for server in servers:
            stack.enter_context(server)
        yield servers


def variant(server: Server) -> Variant:
    return Variant(server.name, server.port, server.cpu_seconds)


def interleaved(variants: Sequence[Variant], options: Options, folder: Path) -> None:
    """Let all variants take turns; shares are medians of the rounds' own ratios. The first one is
    what the others are compared with. A bare commit of SQLite's has its turns as well."""
    commits: list[float] = []
    for clients in CLIENTS:
        measured: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for one in variants:
            _load(one, clients, 0.5)
        for _ in range(options.rounds):
            commits += floor.commits(str(folder / "commits.db"), 100)
            for one in variants:
                measured[one.name].append(_load(one, clients, options.seconds))
        _show(clients, measured[variants[0].name], measured)
    p50, p95 = percentile(commits, 50), percentile(commits, 95)
    print(f"a bare commit, with nobody else at work: p50 {p50:.2f} ms, p95 {p95:.2f} ms")


def _load(variant: Variant, clients: int, seconds: float) -> dict[str, Any]:
    before = variant.cpu_seconds()
    program = [sys.executable, "-m", "benchmarks.load"]
    arguments = [str(variant.port), str(clients), str(seconds), *variant.request]
    output = subprocess.run([*program, *arguments], check=True, stdout=subprocess.PIPE).stdout
    result: dict[str, Any] = orjson.loads(output)
    result["cpu"] = (variant.cpu_seconds() - before) / result["answers"] * 1e6
    return result


def _show(
    clients: int, bare: list[dict[str, Any]], measured: dict[str, list[dict[str, Any]]]
) -> None:
    heading(f"Three steps over HTTP, {clients} client{'s' if clients > 1 else ''}")
    rows = []
    for name, rounds in measured.items():
        pairs = list(zip(rounds, bare, strict=True))
        shares = [mine["per_second"] / his["per_second"] * 100 for mine, his in pairs]
        rows.append(
            (
                name,
                spread([line["per_second"] for line in rounds], "{:.0f}"),
                spread(shares, "{:.1f}"),
                spread([line["p50"] for line in rounds]),
                spread([line["p95"] for line in rounds]),
                spread([mine["p95"] / his["p95"] for mine, his in pairs], "{:.1f}"),
                spread([line["cpu"] for line in rounds], "{:.0f}"),
            )
        )
    table(("", "requests/s", "% of the first", "p50 ms", "p95 ms", "x its p95", "CPU us"), rows)


def _profile(server: Server) -> None:
    processes: list[PythonProcess] = [server]
    if server.companion is not None:
        processes.append(server.companion)
    with ExitStack() as stack:
        profiles = [stack.enter_context(process.profiled()) for process in processes]
        found = _load(variant(server), CLIENTS[-1], 5)
    for process, profile in zip(processes, profiles, strict=True):
        heading(f"Where the processor time goes: {server.name}, in {process.name}")
        rows = [
            (where, share, f"{float(ms) * 1e3 / found['answers']:.1f}")
            for where, share, ms in profile
        ]
        table(("", "%", "us a request"), rows)
