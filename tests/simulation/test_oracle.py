"""The oracle tells right outcomes from wrong ones, and its programs are worth a simulation."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from tests.simulation.oracle import Oracle
from tests.simulation.programs import (
    PATIENT,
    Cancel,
    Event,
    Invoke,
    Parallel,
    Program,
    Push,
    Request,
    Scenario,
    Step,
    Stumble,
    Wait,
    programs,
    random_scenario,
    walk,
)


def oracle_of(*nodes: object, events: int = 0, **options: object) -> Oracle:
    program = Program(nodes, **options)  # type: ignore[arg-type]
    sent = tuple(Event(f"e{n}", "0", 0, "paid", "0", n) for n in range(1, events + 1))
    return Oracle(Scenario((Request("0", program),), sent))


def test_a_step_gives_its_value_or_its_failure() -> None:
    oracle = oracle_of(Step("a", 7, failures=3), Step("b", 8, failures=4))
    assert oracle.ends("0") == {"completed"}
    assert oracle.wrong_end("0", "completed", [7, {"error": "b"}]) is None
    assert oracle.wrong_end("0", "completed", [7, 8])
    assert oracle.wrong_end("0", "completed", [7])
    assert oracle.wrong_end("0", "failed", "b")


def test_a_failure_that_is_not_caught_ends_the_run() -> None:
    oracle = oracle_of(Step("a", 7), Step("b", 8, is_fatal=True, is_caught=False), Step("c", 9))
    assert oracle.ends("0") == {"failed"}
    assert oracle.wrong_end("0", "failed", "b") is None
    assert oracle.wrong_end("0", "failed", "a")


def test_a_patient_wait_gets_an_event_if_there_are_enough() -> None:
    wait = Wait("w", "paid", "0", PATIENT)
    assert oracle_of(wait, events=1).wrong_end("0", "completed", [None])
    assert oracle_of(wait, events=1).wrong_end("0", "completed", [1]) is None
    assert oracle_of(wait, events=0).wrong_end("0", "completed", [None]) is None
    assert oracle_of(Wait("w", "paid", "x", PATIENT), events=1).wrong_end("0", "completed", [1])


def test_an_event_ends_one_wait_after_another_only_once() -> None:
    two = Wait("v", "paid", None, PATIENT), Wait("w", "paid", None, PATIENT)
    assert oracle_of(*two, events=2).wrong_end("0", "completed", [1, 1])
    assert oracle_of(*two, events=2).wrong_end("0", "completed", [2, 1]) is None
    beside = Parallel(((two[0],), (two[1],)))
    assert oracle_of(beside, events=2).wrong_end("0", "completed", [[[1], [1]]]) is None


def test_a_child_may_be_cancelled_if_its_parent_may() -> None:
    program = Program((Invoke("i", Program((Step("a", 1),))),))
    free = Oracle(Scenario((Request("0", program),)))
    assert free.ends("0/i") == {"completed"}
    cancelled = Oracle(Scenario((Request("0", program),), cancels=(Cancel("0", 5),)))
    assert cancelled.ends("0/i") == {"completed", "cancelled"}


def test_what_a_failed_try_streamed_is_not_permanent() -> None:
    oracle = oracle_of(
        Push(("x ", "y ")),
        Step("a", 1, chunks=("a ",)),
        Step("b", 2, is_fatal=True, chunks=("b ",)),
    )
    assert oracle.committed("0") == {"": "x y ", "a": "a "}
    assert oracle.wrong_stream("0", "completed", {"": "x y ", "a": "a ", "b": "b "})
    assert oracle.wrong_stream("0", "completed", {"": "x y "})
    assert oracle.wrong_stream("0", "cancelled", {"": "x "}) is None


def test_a_seed_writes_the_same_scenario_each_time() -> None:
    assert random_scenario(Random(5)) == random_scenario(Random(5))


def test_scenarios_have_everything_that_there_is() -> None:
    seen: Counter[str] = Counter()
    certain = 0
    for seed in range(300):
        scenario = random_scenario(Random(seed))
        oracle = Oracle(scenario)
        for label, program in programs(scenario).items():
            seen.update(oracle.ends(label))
            for node in walk(program.nodes):
                seen[type(node).__name__] += 1
                if isinstance(node, Wait):
                    certain += oracle.is_certain(label, node)
    assert min(seen.values()) >= 20, seen
    assert len(seen) == 14
    assert certain > 100


@pytest.mark.parametrize("seed", range(3))
def test_names_are_unique_in_a_program_and_handlers_stumble_once(seed: int) -> None:
    for n in range(100):
        for program in programs(random_scenario(Random(seed * 100 + n))).values():
            nodes = list(walk(program.nodes))
            names = [name for node in nodes if (name := getattr(node, "name", None))]
            assert len(set(names)) == len(names)
            assert sum(isinstance(node, Stumble) for node in nodes) <= 1
