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
    long_runs,
    over_http,
    profiling,
    sleepers,
    streams,
    wakes,
)
from benchmarks.growth import measure as growth
from benchmarks.peers import measure as peers

MEASUREMENTS: dict[str, Callable[[Path], None]] = {
    "context": context.measure,
    "steps": long_runs.measure,
    "wakes": wakes.measure,
    "companion": companion.measure,
    "sleepers": sleepers.measure,
    "streams": streams.measure,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(["http", "peers", "growth", *MEASUREMENTS]))
@click.option("--rounds", default=10, show_default=True, help="Of `http` and `peers`.")
@click.option("--seconds", default=1.0, show_default=True, help="Per round and variant.")
@click.option("--runs", default=10_000_000, show_default=True, help="Of `growth`.")
@click.option("--profile", is_flag=True, help="Print where the processor time goes, too.")
def main(names: tuple[str, ...], rounds: int, seconds: float, runs: int, profile: bool) -> None:
    """Measure NAMES, by default everything but `peers` and `growth`. Databases are made in the
    current folder's file system, because a temporary folder may be in memory, where an fsync costs
    nothing."""
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}")
    with tempfile.TemporaryDirectory(prefix=".benchmarks-", dir=".") as name:
        folder = Path(name).absolute()
        if not names or "http" in names:
            over_http.measure(folder, rounds, seconds, profile)
        if "peers" in names:
            peers.measure(folder, rounds, seconds)
        if "growth" in names:
            growth.measure(folder, runs)
        for measurement, measure in MEASUREMENTS.items():
            if not names or measurement in names:
                with profiling.sampled() if profile else nullcontext():
                    measure(folder)


main()
