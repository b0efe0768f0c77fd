"""`python -m tests.chaos.matrix --rounds 500`: many cases at random, and a table of what came of
them."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from tests.chaos.matrix.boundaries import Mode
from tests.chaos.matrix.fleet import Fleet
from tests.chaos.matrix.rounds import Case, Verdict, choose, play

_ROUNDS_PER_FLEET: Final = 20
_COLUMNS: Final = ("lost", "repeated", "wrong", "stuck")


class Table:
    """How often each fault happened, and what came of the rounds in which it did."""

    def __init__(self) -> None:
        self.times: Counter[tuple[str, str]] = Counter()
        self.problems: Counter[tuple[str, str, str]] = Counter()
        self.totals: Counter[str] = Counter()

    def add(self, verdict: Verdict) -> None:
        """Count one round."""
        self.totals["rounds"] += 1
        self.totals["runs"] += verdict.runs
        self.totals["bodies"] += verdict.bodies
        self.totals["late"] += verdict.late
        self.totals["missed"] += len(verdict.missed)
        self.totals["failed"] += bool(verdict.problems)
        for fault in verdict.case.faults:
            if fault in verdict.missed:
                continue
            self.totals["faults"] += 1
            row = verdict.case.mode, fault.title
            self.times[row] += 1
            for problem in verdict.problems:
                self.problems[(*row, problem.what)] += 1

    def lines(self) -> list[str]:
        """The table, in Markdown."""
        lines = [f"| mode | fault | times | {' | '.join(_COLUMNS)} |", "|---|---|--:|" + "--:|" * 4]
        for row, times in sorted(self.times.items()):
            found = " | ".join(str(self.problems[(*row, column)]) for column in _COLUMNS)
            lines.append(f"| {row[0]} | {row[1]} | {times} | {found} |")
        return [*lines, "", ", ".join(f"{name}: {count}" for name, count in self.totals.items())]


async def run(rounds: int, seed: int, folder: Path, table: Table) -> None:
    """Play so many rounds: the n-th one is that of `seed` + n."""
    done = 0
    while done < rounds:
        some = range(seed + done, seed + min(rounds, done + _ROUNDS_PER_FLEET))
        async with AsyncExitStack() as stack:
            fleets: dict[Mode, Fleet] = {}
            for number in some:
                chance = random.Random(number)
                case = choose(chance)
                if case.mode not in fleets:
                    fleet = Fleet(case.mode, folder / f"{case.mode} {some.start}")
                    fleets[case.mode] = await stack.enter_async_context(fleet)
                _say(await _timed(fleets[case.mode], case, number, chance), number, table)
        done += len(some)
        if not table.totals["failed"]:
            for fleet in fleets.values():
                shutil.rmtree(fleet.folder)


async def _timed(
    fleet: Fleet, case: Case, number: int, chance: random.Random
) -> tuple[Verdict, float]:
    began = time.monotonic()
    return await play(fleet, case, f"r{number}", chance), time.monotonic() - began


def _say(played: tuple[Verdict, float], number: int, table: Table) -> None:
    verdict, seconds = played
    table.add(verdict)
    missed = f"; missed: {', '.join(fault.title for fault in verdict.missed)}"
    print(
        f"{number} {verdict.case.title}{missed if verdict.missed else ''} ({seconds:.1f} s)",
        flush=True,
    )
    for problem in verdict.problems:
        print(f"    {problem.what.upper()}: {problem.detail}", flush=True)


def main() -> int:
    """The command. Its status says whether a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.matrix", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="how many cases [25]")
    parser.add_argument("--seed", type=int, default=None, help="of the first one [any]")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="matrix-"))
    print(f"seeds from {seed} on; what processes write is in {folder}", flush=True)
    table = Table()
    try:
        asyncio.run(run(options.rounds, seed, folder, table))
    except KeyboardInterrupt:
        print("stopped")
    print("\n".join(["", *table.lines()]))
    if table.totals["failed"]:
        print(
            f"\nA failed round again: python -m tests.chaos.matrix --rounds 1 --seed SEED\n{folder}"
        )
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
