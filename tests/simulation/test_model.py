"""The core keeps its promises in some hundreds of histories, and the simulator is honest."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from durable_endpoints_server.engine import facts, transitions
from durable_endpoints_server.engine.facts import Change
from durable_endpoints_server.engine.model import Run, Status
from tests.simulation.model.disk import LATE
from tests.simulation.model.faults import ACTIONS, MESSAGES
from tests.simulation.model.history import plan_of, play
from tests.simulation.model.search import made_small, search, told
from tests.simulation.programs import programs, walk

_SHARE = 300
_HOUSEKEEPING = {"ResponseDelivered", "InboxTaken", "RequestSeen", "OriginTrusted", "Sweep"}
"""Facts that are about no run."""


@pytest.mark.parametrize("first", range(0, 5 * _SHARE, _SHARE))
def test_promises_are_kept(first: int) -> None:
    found = search(range(first, first + _SHARE))
    assert not found.violations, "`python -m tests.simulation --replay SEED` shows one"


@pytest.mark.parametrize("partitions", [2, 3])
def test_promises_need_no_order_but_that_of_each_run(partitions: int) -> None:
    """Each run is kept by one of several stores, with clocks and orders of commits of their own;
    events go to all of them, and children and their ends from one to the other, as messages."""
    assert not search(range(100), partitions).violations


class _Counted(dict[type, Any]):
    """The rules, and how often each was asked for."""

    def __init__(self, rules: Any) -> None:
        super().__init__(rules)
        self.asked: Counter[type] = Counter()

    def __getitem__(self, command: type) -> Any:
        self.asked[command] += 1
        return super().__getitem__(command)


def test_everything_that_may_happen_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = _Counted(transitions.RULES)
    monkeypatch.setattr(transitions, "RULES", rules)
    seen = search(range(300)).seen
    kinds = {kind.__name__ for kind in facts.Fact.__args__} - _HOUSEKEEPING
    wanted = {*kinds, *ACTIONS, *MESSAGES, LATE, *(status.label for status in Status)}
    assert {kind: seen[kind] for kind in wanted if seen[kind] < 5} == {}
    assert {rule: rules.asked[rule] for rule in rules if rules.asked[rule] < 5} == {}


def test_no_history_needs_a_clock_chance_a_socket_or_a_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reach(*args: object, **options: object) -> None:
        raise AssertionError("something reaches outside")

    for place in ("time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns"):
        monkeypatch.setattr(place, reach)
    for place in ("random.random", "os.urandom", "socket.socket", "os.open", "builtins.open"):
        monkeypatch.setattr(place, reach)
    violations = [play(plan_of(number)).violation for number in range(50)]
    monkeypatch.undo()
    assert violations == [None] * 50


def _digest() -> str:
    traces = [play(plan_of(number), is_traced=True).trace for number in range(40)]
    return hashlib.sha256(repr(traces).encode()).hexdigest()


def test_a_history_is_the_same_whenever_and_wherever_it_is_played() -> None:
    code = "from tests.simulation.test_model import _digest; print(_digest())"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == _digest()


def test_a_planted_bug_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    def admits(change: Change, run: Run) -> bool:
        return bool(change.states >> run.status & 1)  # whatever the generation

    monkeypatch.setattr(Change, "admits", admits)
    numbers = iter(range(10_000))
    number = next(n for n in numbers if play(plan_of(n)).violation is not None)
    plan = made_small(plan_of(number))
    nodes = [node for program in programs(plan.scenario).values() for node in walk(program.nodes)]
    assert len(nodes) + len(plan.faults) <= 6
    assert "written: " in told(plan)
    monkeypatch.undo()
    assert play(plan).violation is None
