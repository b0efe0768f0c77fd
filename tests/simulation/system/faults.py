"""What goes wrong in a history, and when: a list, of which each entry can be left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

EMBEDDED = (
    *("kill",) * 5,
    *("hold",) * 2,
    *("terminate",) * 2,
    *("power",) * 2,
    *("cut",) * 4,
    *("full",) * 2,
    *("broken",),
    *("clock",) * 2,
)
REMOTE = (
    *("kill",) * 4,
    *("kill server",) * 4,
    *("hold",) * 3,
    *("hold server",) * 2,
    *("terminate",) * 2,
    *("terminate server",) * 2,
    *("power",) * 2,
    *("cut",) * 3,
    *("cut wire",) * 4,
    *("full",),
    *("broken",),
    *("clock",) * 2,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    at: int
    """Before this callback of the event loop."""
    kind: str
    amount: float
    """How much, or how long, or whom it hits: from 0 to 1."""

    def __str__(self) -> str:
        return f"{self.kind} at {self.at} ({self.amount:.2f})"


def random_faults(random: Random, kinds: Sequence[str]) -> list[Fault]:
    """None to many, close together or far apart."""
    count = random.choice((0, 1, 1, 2, 2, 3, 4, 6, 10))
    gap = random.choice((30, 150, 600))
    at, found = 0, []
    for _ in range(count):
        at += 1 + round(random.expovariate(1 / gap))
        found.append(Fault(at, random.choice(kinds), random.random()))
    return found
