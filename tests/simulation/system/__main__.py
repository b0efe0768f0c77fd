"""`python -m tests.simulation.system`: many histories of what we ship, in two ways: embedded in the
application, and with a server. One that goes wrong is made small."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.system.history import Mode, play, random_history
from tests.simulation.system.search import Found, made_small, search, told

_SHARE = 50
"""Histories that one process plays before it reports."""
_SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 1 if something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.system", description=__doc__)
    parser.add_argument("--system", choices=["embedded", "remote", "all"], default="all")
    parser.add_argument("--histories", type=int, default=1_000, help="of each")
    parser.add_argument("--seed", type=int, default=0, help="of the first history")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--replay", type=int, metavar="SEED", help="play one history, and show it")
    parser.add_argument("--whole", action="store_true", help="do not make what fails small")
    options = parser.parse_args(arguments)
    modes: list[Mode] = ["embedded", "remote"] if options.system == "all" else [options.system]
    if options.replay is not None:
        return max(_replay(mode, options.replay, options.whole) for mode in modes)
    return max(_search(mode, options.seed, options.histories, options.jobs) for mode in modes)


def _search(mode: Mode, first: int, histories: int, jobs: int) -> int:
    last = first + histories
    shares = [range(begin, min(begin + _SHARE, last)) for begin in range(first, last, _SHARE)]
    total = Found(0, 0.0, {}, Counter())
    with ProcessPoolExecutor(jobs) as pool:
        for found in pool.map(search, [mode] * len(shares), shares):
            total = total.and_also(found)
            if sys.stderr.isatty():
                print(f"{total.histories:,} …", end="\r", file=sys.stderr)
    print(
        f"{mode}: {total.histories:,} histories, {total.histories / total.seconds:,.0f} a second "
        f"and process; {len(total.wrong)} went wrong"
    )
    print(", ".join(f"{what} {count:,}" for what, count in sorted(total.counts.items())))
    for seed, wrong in sorted(total.wrong.items())[:_SHOWN]:
        print(f"--system {mode} --replay {seed}: {wrong}")
    return bool(total.wrong)


def _replay(mode: Mode, seed: int, is_whole: bool) -> int:
    history = random_history(mode, seed)
    is_wrong = bool(play(history).wrong)
    print(told(made_small(history) if is_wrong and not is_whole else history))
    return is_wrong


if __name__ == "__main__":
    sys.exit(main())
