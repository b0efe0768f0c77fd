"""What may go wrong in a history: a list, decided by the seed before anything happens."""

from __future__ import annotations

from random import Random
from typing import NamedTuple


class Fault(NamedTuple):
    """One thing that goes wrong."""

    kind: str
    at: int
    """Before which action of the world, or, for `lose`, `repeat` and `delay`, to which message."""
    amount: int = 0
    """How long it lasts, or the delay or the clock's step, in milliseconds; for `refuse`, how many
    writes fail."""


ACTIONS = (
    "crash",  # the process is killed
    "reboot",  # the machine loses power
    "stop",  # the process is stopped, and goes on later
    "replace",  # it is stopped, another one takes its runs over, and then it goes on
    "drain",  # it is ended politely
    "full",  # nothing can be written for a while
    "refuse",  # the next writes fail
    "slow",  # the disk is slow
    "step",  # the clock is set forward
    "back",  # the clock is set back
    "break",  # executions find that they cannot go on
)
MESSAGES = ("lose", "repeat", "delay")

_AMOUNTS = {
    "crash": (0, 5, 500, 45_000, 2_400_000),
    "reboot": (5, 500, 45_000),
    "stop": (5, 500, 45_000),
    "replace": (0, 5, 500, 45_000),
    "drain": (5, 500),
    "full": (3, 500, 20_000),
    "refuse": (1, 1, 2, 5),
    "slow": (20, 1_000),
    "step": (50, 3_000, 1_200_000),
    "back": (50, 3_000, 3_600_000),
    "break": (1, 1_000, 20_000),
    "lose": (0,),
    "repeat": (1, 20, 1_000),
    "delay": (20, 1_000, 60_000),
}


def random_faults(random: Random) -> tuple[Fault, ...]:
    """None now and then, a few mostly, and sometimes one crash after another."""
    if random.random() < 0.1:
        return tuple(
            Fault("crash", at, 0)
            for at in sorted(random.sample(range(1, 250), random.randint(4, 9)))
        )
    found = []
    for _ in range(random.choice((0, 1, 1, 2, 2, 3, 4, 6))):
        kind = random.choice((*ACTIONS, "crash", "crash", *MESSAGES))
        if kind in MESSAGES:
            at = random.randint(1, 25)
        else:
            at = random.randint(1, random.choice((20, 60, 150, 300)))
        found.append(Fault(kind, at, random.choice(_AMOUNTS[kind])))
    return tuple(sorted(found, key=lambda fault: fault.at))
