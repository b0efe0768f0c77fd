"""`python -m tests.simulation`: many histories of the core; one that fails is made small."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

from tests.simulation.model.history import Plan, plan_of, play
from tests.simulation.model.search import Found, made_small, search, told

_SHARE = 500
"""Histories that one process plays before it reports."""


def main() -> int:
    """Return the exit status: 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="the number of the first history")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--replay", type=int, metavar="SEED", help="play one history, and show it")
    parser.add_argument("--partitions", type=int, default=1, help="stores that share the runs")
    parser.add_argument("--whole", action="store_true", help="do not make what fails small")
    options = parser.parse_args()
    if options.replay is not None:
        return _replay(plan_of(options.replay, options.partitions), options.whole)
    found = _search(options.seed, options.histories, options.jobs, options.partitions)
    rate = found.histories / found.seconds
    print(
        f"{found.histories:,} histories, {found.actions:,} actions, {rate:,.0f} histories a second "
        f"and process; {len(found.violations)} broke a promise"
    )
    print(", ".join(f"{kind} {count:,}" for kind, count in sorted(found.seen.items())))
    for number, violation in sorted(found.violations.items())[:20]:
        print(f"--replay {number}: {violation}")
    return bool(found.violations)


def _search(first: int, histories: int, jobs: int, partitions: int) -> Found:
    last = first + histories
    shares = [range(begin, min(begin + _SHARE, last)) for begin in range(first, last, _SHARE)]
    total = Found(0, 0.0, {}, search(()).seen, 0)
    with ProcessPoolExecutor(jobs) as pool:
        for found in pool.map(search, shares, repeat(partitions)):
            total = Found(
                total.histories + found.histories,
                total.seconds + found.seconds,
                total.violations | found.violations,
                total.seen + found.seen,
                total.actions + found.actions,
            )
            if sys.stderr.isatty():
                print(f"{total.histories:,} …", end="\r", file=sys.stderr)
    return total


def _replay(plan: Plan, is_whole: bool) -> int:
    is_broken = play(plan).violation is not None
    if is_broken and not is_whole:
        plan = made_small(plan)
    print(told(plan))
    return is_broken


if __name__ == "__main__":
    sys.exit(main())
