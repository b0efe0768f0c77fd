"""`python -m benchmarks peers`: the same work beside DBOS, Restate and Inngest's SDK."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from benchmarks.options import Options
from benchmarks.over_http import Variant, interleaved, ours, variant
from benchmarks.peers import processes, work
from benchmarks.peers.installing import Missing


def measure(folder: Path, options: Options) -> None:
    print(
        f"fastapi {version('fastapi')}, uvicorn {version('uvicorn')}; peers as in benchmarks/peers"
    )
    with ExitStack() as stack:
        servers = stack.enter_context(ours(folder))
        variants: list[Variant] = [variant(server) for server in servers]
        workers: list[work.Worker] = [
            work.Ours(server.name, server.url) for server in servers if server.name in work.OURS
        ]
        try:
            process = stack.enter_context(processes.dbos(folder))
            variants += processes.dbos_variants(process)
            workers.append(work.Dbos("DBOS async, SQLite", process.url))
        except (Missing, RuntimeError) as error:
            _skipped("DBOS", error)
        try:
            ingress, service = stack.enter_context(processes.restate(folder))
            variants += processes.restate_variants(ingress, service)
            workers.append(work.Restate("Restate", ingress.url))
        except (Missing, RuntimeError) as error:
            _skipped("Restate", error)
        try:
            variants += stack.enter_context(processes.inngest(folder))
        except (Missing, RuntimeError) as error:
            _skipped("Inngest's SDK", error)
        interleaved(variants, options, folder)
        asyncio.run(work.measure(workers, options.rounds))


def _skipped(name: str, error: Exception) -> None:
    print(f"*** SKIPPED: {name}: {error}", flush=True)
