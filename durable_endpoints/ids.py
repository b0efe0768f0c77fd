"""Ids of runs: ULIDs, so that they sort by the time at which their requests came."""

from __future__ import annotations

import os
import time
from hashlib import sha256

from ulid import base32

_PAIRS = [first + second for first in base32.ENCODE for second in base32.ENCODE]
"""Ten bits each."""
_SHIFTS = range(120, -10, -10)


def new_run_id() -> str:
    """A new ULID. Put together here because `str(ULID())` takes six times as long, and every
    request needs one; what it adds, order within a millisecond, no run needs."""
    return _encode(time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10), "big"))


def began_at(run_id: str) -> int:
    """When the request of a run came, as its id says: epoch milliseconds."""
    return int.from_bytes(base32.decode(run_id)[:6], "big")


def child_run_id(parent: str, step: str) -> str:
    """The id of the run that a run invokes by the step with this hash: always the same one, so that
    whoever asks for it need not have kept it. It has its parent's time."""
    digest = sha256(f"{parent}:{step}".encode()).digest()
    return _encode(began_at(parent) << 80 | int.from_bytes(digest[:10], "big"))


def _encode(number: int) -> str:
    """128 bits as the 26 letters of a ULID."""
    pairs = _PAIRS
    return "".join([pairs[number >> shift & 1023] for shift in _SHIFTS])
