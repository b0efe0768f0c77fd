"""Step ids: how the n-th use of a name becomes the key under which a result is remembered.

The rule is Inngest's (its SDK protocol, "step ids"): the id is the lower-case hex SHA-1 of the
name; the second use of a name hashes `name:1`, the third `name:2` and so on, and an index whose
hash is taken already (because somebody named a step `a:1` outright) is skipped.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha1
from typing import NamedTuple

MAX_NAME_LENGTH = 1_024
HANDLER_NAME = "complete"
"""The reserved name of the handler itself: its retries are counted under this step's id."""


class StepId(NamedTuple):
    """One use of a step name within a run."""

    hash: str
    name: str
    repeat: int
    """0 for the first use of the name, then 1, 2, …"""

    def __str__(self) -> str:
        return f"{self.name}:{self.repeat}" if self.repeat else self.name


@lru_cache(maxsize=4_096)
def hash_name(name: str) -> str:
    return sha1(name.encode("utf-8"), usedforsecurity=False).hexdigest()


@lru_cache(maxsize=4_096)
def _first_use(name: str) -> StepId:
    return StepId(hash_name(name), name, 0)


HANDLER_STEP = _first_use(HANDLER_NAME)


class StepIds:
    """Hands out step ids in call order for one pass through a handler."""

    __slots__ = ("_last", "_used")

    def __init__(self) -> None:
        self._last: dict[str, int] | None = None
        """How often a name was used again, if any was."""
        self._used: set[str] = {HANDLER_STEP.hash}

    def next(self, name: str) -> StepId:
        """Return the id of the next use of `name`."""
        step = _first_use(name)
        if step[0] in self._used:
            if self._last is None:
                self._last = {}
            repeat = self._last.get(name, 0) + 1
            while (key := hash_name(f"{name}:{repeat}")) in self._used:
                repeat += 1
            self._last[name] = repeat
            step = StepId(key, name, repeat)
        self._used.add(step[0])
        return step
