"""Twenty-five cases of the crash matrix: each boundary, killed and stopped. `python -m
tests.chaos.matrix` plays as many as you like, at random."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.chaos.matrix.boundaries import OF, Mode, Role
from tests.chaos.matrix.fleet import Fleet
from tests.chaos.matrix.proxy import DAMAGES
from tests.chaos.matrix.rounds import LINKS, LONG, Break, Case, Crash, Fault, play


def both(victim: Role, *boundaries: str, crossing: int = 3) -> tuple[Fault, ...]:
    """Killed at each boundary, and in the next life stopped there."""
    return tuple(
        Crash(victim, boundary, number, crossing)
        for boundary in boundaries
        for number in ("SIGKILL", "SIGSTOP")
    )


def once(victim: Role, *boundaries: str, crossing: int = 2) -> tuple[Fault, ...]:
    """The same, at a boundary that is not crossed often."""
    return both(victim, *boundaries, crossing=crossing)


LOST_LEASE = Crash("app", "body-begun", "SIGSTOP", 4, away=LONG)
OUTSIDE, BETWEEN = (
    tuple(Break(link, damage, 1 if damage == "hold" else 3) for damage in DAMAGES) for link in LINKS
)

EMBEDDED: tuple[tuple[Fault, ...], ...] = (
    (*both("app", "before-write"), *once("client", "before-request")),
    (*both("app", "inside-write"), *once("client", "mid-request")),
    (*both("app", "after-write"), *once("client", "request-sent")),
    (*both("app", "before-acknowledgement"), *both("client", "answer-arrives")),
    (*both("app", "after-acknowledgement"), *once("client", "answer-complete")),
    (*both("app", "before-sync", crossing=1), *both("client", "frame-arrives")),
    (*both("app", "request-read"), *both("client", "frame-kept")),
    (*both("app", "before-answer"), *once("client", "answer-kept")),
    (*both("app", "answer-begun"), *OUTSIDE[:2]),
    (*both("app", "mid-answer"), *both("app", "mid-stream")),
    (*both("app", "before-last-byte"), *both("app", "after-last-byte")),
    (*both("app", "body-begun"), *both("app", "body-done"), *OUTSIDE[2:]),
)
SERVER: tuple[tuple[Fault, ...], ...] = (
    (*both("server", "before-write"), *once("client", "before-request")),
    (*both("server", "inside-write"), *once("client", "mid-request")),
    (*both("server", "after-write"), *once("client", "request-sent")),
    (*both("server", "before-acknowledgement"), *both("client", "answer-arrives")),
    (*both("server", "after-acknowledgement"), *once("client", "answer-complete")),
    (*both("server", "before-sync", crossing=1), *once("client", "frame-arrives")),
    (*both("server", "before-message"), *both("client", "frame-kept")),
    (*both("server", "message-arrived"), *once("client", "answer-kept")),
    (*both("server", "after-message"), *both("app", "before-message")),
    (*both("server", "message-handled"), *both("app", "message-arrived")),
    (*once("server", "request-read", "before-last-byte"), *both("app", "after-message")),
    (LOST_LEASE, *both("app", "message-handled", "before-last-byte"), *OUTSIDE[:2]),
    (*both("app", "mid-stream", "body-done"), *BETWEEN),
)


class Numbered(NamedTuple):
    """A case of the list, which is played with its own number as the seed."""

    number: int
    case: Case


CASES = [
    Numbered(number, case)
    for number, case in enumerate(
        [
            *(Case("embedded", faults) for faults in EMBEDDED),
            *(Case("server", faults) for faults in SERVER),
        ]
    )
]


class Stage:
    """A fleet of one mode, and the event loop that it lives on."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._runner = asyncio.Runner()
        self._runner.run(fleet.__aenter__())

    def play(self, numbered: Numbered) -> None:
        verdict = self._runner.run(
            play(
                self._fleet,
                numbered.case,
                f"r{numbered.number}",
                random.Random(numbered.number),
            )
        )
        assert verdict.problems == []
        assert verdict.missed == []

    def close(self) -> None:
        self._runner.run(self._fleet.__aexit__(None, None, None))
        self._runner.close()


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Mode, Stage]]:
    """Those that were needed; one case plays in the fleet that the one before has left."""
    found: dict[Mode, Stage] = {}
    yield found
    for stage in found.values():
        stage.close()


@pytest.mark.parametrize(
    "numbered",
    [
        pytest.param(
            numbered,
            id=numbered.case.title,
            marks=pytest.mark.xdist_group(f"matrix {numbered.case.mode}"),
        )
        for numbered in CASES
    ],
)
def test_nothing_is_lost_or_done_twice(
    numbered: Numbered, stages: dict[Mode, Stage], tmp_path_factory: pytest.TempPathFactory
) -> None:
    mode = numbered.case.mode
    if mode not in stages:
        stages[mode] = Stage(Fleet(mode, tmp_path_factory.mktemp(mode)))
    stages[mode].play(numbered)


def test_every_boundary_is_among_the_cases_with_both_signals() -> None:
    """Those of HTTP that both kinds of application share need only be in one of them."""
    played = {
        (fault.victim, fault.boundary, fault.signal)
        for numbered in CASES
        for fault in numbered.case.faults
        if isinstance(fault, Crash)
    }
    wanted = {
        (role, boundary, signal)
        for (_, role), boundaries in OF.items()
        for boundary in boundaries
        for signal in ("SIGKILL", "SIGSTOP")
    }
    # What the server answers by HTTP is heartbeats, of which the first and the last byte do.
    wanted -= {
        ("server", boundary, signal)
        for boundary in ("before-answer", "answer-begun", "after-last-byte")
        for signal in ("SIGKILL", "SIGSTOP")
    }
    assert wanted <= played
    assert len(CASES) == 25
