"""Many histories, and those that break a promise made small."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.simulation.model.history import Outcome, Plan, plan_of, play
from tests.simulation.model.telling import told_plan, with_short_instants
from tests.simulation.shrinking import shrunk, smaller_scenarios, smaller_tuples

_SCHEDULES = 8
"""How many orders of things a smaller plan is tried in: its own may hide what is wrong."""


class Found(NamedTuple):
    """What came of some histories."""

    histories: int
    seconds: float
    violations: dict[int, str]
    """By the numbers of the histories."""
    seen: Counter[str]
    actions: int


def search(numbers: Iterable[int], partitions: int = 1) -> Found:
    """Play the histories with these numbers."""
    began = time.perf_counter()
    violations: dict[int, str] = {}
    seen: Counter[str] = Counter()
    actions = histories = 0
    for number in numbers:
        outcome = play(plan_of(number, partitions))
        histories += 1
        actions += outcome.actions
        seen.update(outcome.seen)
        if outcome.violation is not None:
            violations[number] = outcome.violation
    return Found(histories, time.perf_counter() - began, violations, seen, actions)


def made_small(plan: Plan) -> Plan:
    """A smaller plan that breaks a promise, too."""
    return shrunk(plan, lambda candidate: play(candidate).violation is not None, _smaller)


def _smaller(plan: Plan) -> Iterator[Plan]:
    for schedule in (plan.schedule, *range(_SCHEDULES)):
        for faults in smaller_tuples(plan.faults):
            yield plan._replace(faults=faults, schedule=schedule)
        for scenario in smaller_scenarios(plan.scenario):
            yield plan._replace(scenario=scenario, schedule=schedule)


def told(plan: Plan) -> str:
    """A plan, what happened, and what was wrong, for a person to read."""
    outcome: Outcome = play(plan, is_traced=True)
    wrong = outcome.violation or "Nothing is wrong."
    lines = [*told_plan(plan), "\nWHAT HAPPENED", *outcome.trace, "\nWHAT IS WRONG", wrong]
    return with_short_instants("\n".join(lines))
