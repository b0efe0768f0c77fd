"""Three steps over real HTTP: the bare handler, the floor, and ours, with the engine in process and
in a companion server, interleaved in one run."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from benchmarks.report import heading, spread, table
from benchmarks.servers import OVER_A_SERVER, VARIANTS, Companion, Server

CLIENTS = (1, 64)


def measure(folder: Path, rounds: int, seconds: float) -> None:
    """Print a table for each number of clients. Shares are medians of the rounds' own ratios."""
    with ExitStack() as stack:
        companion = Companion(folder)
        stack.enter_context(companion)
        servers = [Server(variant, folder) for variant in VARIANTS]
        servers += [Server(variant, folder, companion=companion) for variant in OVER_A_SERVER]
        for server in servers:
            stack.enter_context(server)
        for clients in CLIENTS:
            measured: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for server in servers:
                _load(server, clients, 0.5)
            for _ in range(rounds):
                for server in servers:
                    measured[server.name].append(_load(server, clients, seconds))
            _show(clients, measured)


def _load(server: Server, clients: int, seconds: float) -> dict[str, Any]:
    before = server.cpu_seconds()
    program = [sys.executable, "-m", "benchmarks.load"]
    output = subprocess.run(
        [*program, str(server.port), str(clients), str(seconds)], check=True, stdout=subprocess.PIPE
    ).stdout
    result: dict[str, Any] = orjson.loads(output)
    result["cpu"] = (server.cpu_seconds() - before) / result["answers"] * 1e6
    return result


def _show(clients: int, measured: dict[str, list[dict[str, Any]]]) -> None:
    heading(f"Three steps over HTTP, {clients} client{'s' if clients > 1 else ''}")
    bare = measured["bare"]
    rows = []
    for variant, rounds in measured.items():
        shares = [
            mine["per_second"] / his["per_second"] * 100
            for mine, his in zip(rounds, bare, strict=True)
        ]
        rows.append(
            (
                variant,
                spread([line["per_second"] for line in rounds], "{:.0f}"),
                spread(shares, "{:.0f}"),
                spread([line["p50"] for line in rounds]),
                spread([line["p95"] for line in rounds]),
                f"{median(line['cpu'] for line in rounds):.0f}",
            )
        )
    table(("", "requests/s", "% of bare", "p50 ms", "p95 ms", "CPU us"), rows)
