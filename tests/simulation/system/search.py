"""Many histories of what we ship, and those that go wrong made small."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from tests.simulation.shrinking import shrunk, smaller_scenarios, smaller_tuples
from tests.simulation.system.history import History, Mode, play, random_history

_SCHEDULES = 4
"""In how many ways of how long things take a smaller history is tried: its own may hide what is
wrong."""
_DETAIL = re.compile(r"[0-9A-Z]{26}|\d+|'[^']*'|\[.*\]|\n.*", re.DOTALL)


class Found(NamedTuple):
    """What came of some histories."""

    histories: int
    seconds: float
    wrong: dict[int, str]
    """The first thing that was wrong, by the seeds of the histories."""
    counts: Counter[str]
    """How often what happened."""

    def and_also(self, other: Found) -> Found:
        """Both together."""
        return Found(
            self.histories + other.histories,
            self.seconds + other.seconds,
            self.wrong | other.wrong,
            self.counts + other.counts,
        )


def search(mode: Mode, seeds: Iterable[int]) -> Found:
    """Play the histories of these seeds."""
    found = Found(0, 0.0, {}, Counter())
    for seed in seeds:
        began = time.perf_counter()
        outcome = play(random_history(mode, seed))
        wrong = {seed: outcome.wrong[0]} if outcome.wrong else {}
        seconds = time.perf_counter() - began
        found = found.and_also(Found(1, seconds, wrong, outcome.counts))
    return found


def made_small(history: History, tries: int = 3_000) -> History:
    """A smaller history in which the same kind of thing is wrong, found in so many tries."""
    kind = _kind(history)
    return shrunk(history, lambda candidate: _kind(candidate) == kind, _smaller, tries)


def _kind(history: History) -> str:
    """What is wrong first, without what differs from history to history."""
    wrong = play(history).wrong
    return _DETAIL.sub("#", wrong[0]) if wrong else ""


def _smaller(history: History) -> Iterator[History]:
    for seed in (history.seed, *range(_SCHEDULES)):
        for faults in smaller_tuples(history.faults):
            yield replace(history, faults=faults, seed=seed)
        for scenario in smaller_scenarios(history.scenario):
            yield replace(history, scenario=scenario, seed=seed)


def told(history: History) -> str:
    """A history, what happened, and what was wrong, for a person to read."""
    outcome, scenario = play(history), history.scenario
    parts = (*scenario.requests, *scenario.events, *scenario.signals, *scenario.cancels)
    lines = [str(part) for part in (*parts, *history.faults)]
    return "\n".join([*lines, "", *outcome.trace, "", *(outcome.wrong or ["nothing is wrong"])])
