"""Lose the power of a disk as often as you like: `python -m tests.chaos.disk --cuts 2000`."""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.chaos.disk.checking import check, record

_PER_RECORDING = 100


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.disk", description=__doc__)
    parser.add_argument("--cuts", type=int, default=1_000, help="losses of power")
    parser.add_argument("--seed", type=int, default=1, help="which losses, and what they leave")
    parser.add_argument("--synchronous", choices=["full", "normal"], default="full")
    parser.add_argument("--place", choices=["embedded", "server"], default="embedded")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    began, done = time.monotonic(), 0
    lost: Counter[str] = Counter()
    while done < options.cuts:
        seed = chance.randrange(10**9)
        with tempfile.TemporaryDirectory() as folder:
            recording = await record(Path(folder), options.synchronous, options.place)
        wanted = min(_PER_RECORDING, options.cuts - done)
        points = sorted(chance.choices(range(1, len(recording.operations) + 1), k=wanted))
        for one in await check(recording, points, seed):
            lost.update(one._asdict())
        done += wanted
        shown = ", ".join(f"{count} {name}" for name, count in sorted(lost.items()))
        print(
            f"{done} losses of power, {time.monotonic() - began:.0f} s; lost: {shown}", flush=True
        )


asyncio.run(main())
