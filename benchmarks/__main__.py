"""`python -m benchmarks`: all measurements, or those that are named."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import click

from benchmarks import (
    companion,
    context,
    counts,
    long_runs,
    over_http,
    profiling,
    sleepers,
    streams,
    wakes,
)
from benchmarks.growth import measure as growth
from benchmarks.options import Options
from benchmarks.peers import measure as peers

MEASUREMENTS: dict[str, Callable[[Path, Options], None]] = {
    "http": over_http.measure,
    "context": context.measure,
    "counts": counts.measure,
    "steps": long_runs.measure,
    "wakes": wakes.measure,
    "companion": companion.measure,
    "sleepers": sleepers.measure,
    "streams": streams.measure,
    "peers": peers.measure,
    "growth": growth.measure,
}
ON_REQUEST = ("peers", "growth")
"""Those that install something, or take gigabytes."""
WITH_SERVERS = ("http", "peers")
"""Those that profile the processes they start, and not their own."""


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(MEASUREMENTS)))
@click.option("--rounds", default=10, show_default=True, help="How often each has its turn.")
@click.option("--seconds", default=1.0, show_default=True, help="Of each turn over HTTP.")
@click.option("--runs", default=10_000_000, show_default=True, help="Of `growth`.")
@click.option("--sleepers", "sleeping", default=10_000, show_default=True, help="Of `sleepers`.")
@click.option("--profile", is_flag=True, help="Print where the processor time goes, too.")
def main(
    names: tuple[str, ...], rounds: int, seconds: float, runs: int, sleeping: int, profile: bool
) -> None:
    """Measure NAMES, by default everything but `peers` and `growth`. Databases are made in the
    current folder's file system, because a temporary folder may be in memory, where an fsync costs
    nothing."""
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}")
    options = Options(rounds, seconds, runs, sleeping, profile)
    chosen = names or [name for name in MEASUREMENTS if name not in ON_REQUEST]
    with tempfile.TemporaryDirectory(prefix=".benchmarks-", dir=".") as folder:
        for name in chosen:
            here = profile and name not in WITH_SERVERS
            with profiling.sampled() if here else nullcontext():
                MEASUREMENTS[name](Path(folder).absolute(), options)


main()
