"""How long a client waits: for an answer, for a sign of life, and before it asks again. Pure."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime


@dataclass(frozen=True)
class Pacing:
    """Times in seconds. The defaults fit the server's heartbeats; tests make them short."""

    first_delay: float = 0.1
    """The most before the first repetition; doubled from one to the next …"""
    longest_delay: float = 5.0
    """… up to this. The wait itself is drawn evenly from nothing to there (full jitter), so that
    the clients of a server that was restarted do not come back all at once."""
    longest_retry_after: float = 60.0
    """A server's `Retry-After` beyond it is taken for this."""
    answer_within: float = 90.0
    """How long the head of a response, or the next piece of an ordinary one, may take. The server
    itself answers within 50 s."""
    silence: float = 45.0
    """How long a stream may be silent before its connection counts as dead: three heartbeats."""
    random: Callable[[], float] = random.random
    clock: Callable[[], float] = time.monotonic

    def delay(self, failures: int, retry_after: float = 0.0) -> float:
        """The wait before the next request, when `failures` have come before this one."""
        longest = min(self.longest_delay, self.first_delay * 2.0 ** min(failures, 32))
        return max(self.random() * longest, min(retry_after, self.longest_retry_after))


def seconds_to_wait(retry_after: str | None, date: str | None) -> float:
    """What a `Retry-After` header asks for (RFC 9110 §10.2.3), 0 if nothing that can be read.

    A date is counted from the response's own `Date`, so that the two clocks need not agree.
    """
    if retry_after is None:
        return 0.0
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        wait = parsedate_to_datetime(retry_after) - parsedate_to_datetime(date or "")
    except (TypeError, ValueError):  # no date, or one with a time zone and one without
        return 0.0
    return max(0.0, wait.total_seconds())
