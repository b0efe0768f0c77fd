"""Lose the power of a disk as often as you like: `python -m tests.chaos.disk --cuts 2000`."""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from durable_endpoints.protocol.errors import StorageError
from tests.chaos.disk.checking import Recording, check, record

_PER_RECORDING = 100
_PER_FAILURE = 10
_SYNCS = 90
"""Syncs in one recording, roughly."""


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.disk", description=__doc__)
    parser.add_argument("--cuts", type=int, default=1_000, help="losses of power")
    parser.add_argument("--seed", type=int, default=1, help="which losses, and what they leave")
    parser.add_argument("--synchronous", choices=["full", "normal"], default="full")
    parser.add_argument("--place", choices=["embedded", "server"], default="embedded")
    parser.add_argument("--failing", action="store_true", help="let some syncs fail before")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    began, done = time.monotonic(), 0
    lost: Counter[str] = Counter()
    while done < options.cuts:
        seed = chance.randrange(10**9)
        per_recording = _PER_FAILURE if options.failing else _PER_RECORDING
        recording = await _record(chance, options)
        wanted = min(per_recording, options.cuts - done)
        points = sorted(chance.choices(range(1, len(recording.operations) + 1), k=wanted))
        for one in await check(recording, points, seed):
            lost.update(one._asdict())
        done += wanted
        shown = ", ".join(f"{count} {name}" for name, count in sorted(lost.items()))
        print(
            f"{done} losses of power, {time.monotonic() - began:.0f} s; lost: {shown}", flush=True
        )


async def _record(chance: random.Random, options: argparse.Namespace) -> Recording:
    while True:
        first = chance.randrange(_SYNCS)
        failing = range(first, first + chance.randint(1, 3)) if options.failing else ()
        with tempfile.TemporaryDirectory() as folder:
            try:
                return await record(Path(folder), options.synchronous, options.place, failing)
            except StorageError as error:
                print(f"it does not start: {error}")  # as it should when syncs fail meanwhile


asyncio.run(main())
