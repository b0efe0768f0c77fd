"""`python -m benchmarks peers`: three steps over HTTP, beside DBOS, Restate and Inngest's SDK."""

from __future__ import annotations

from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from benchmarks.over_http import Variant, interleaved, ours, variant
from benchmarks.peers import processes
from benchmarks.peers.installing import Missing


def measure(folder: Path, rounds: int, seconds: float) -> None:
    print(
        f"fastapi {version('fastapi')}, uvicorn {version('uvicorn')}; peers as in benchmarks/peers"
    )
    with ExitStack() as stack:
        variants: list[Variant] = [variant(server) for server in stack.enter_context(ours(folder))]
        try:
            variants += processes.dbos_variants(stack.enter_context(processes.dbos(folder)))
        except (Missing, RuntimeError) as error:
            _skipped("DBOS", error)
        try:
            variants += processes.restate_variants(*stack.enter_context(processes.restate(folder)))
        except (Missing, RuntimeError) as error:
            _skipped("Restate", error)
        try:
            variants += stack.enter_context(processes.inngest(folder))
        except (Missing, RuntimeError) as error:
            _skipped("Inngest's SDK", error)
        interleaved(variants, rounds, seconds)


def _skipped(name: str, error: Exception) -> None:
    print(f"*** SKIPPED: {name}: {error}", flush=True)
