"""Ids of runs: ULIDs, so that they sort by the time at which their requests came."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from hashlib import sha256

from ulid import base32

_ALPHABET = base32.ENCODE
_LETTERS = _ALPHABET.encode() * 8
"""For each byte the letter of its last five bits."""


def new_run_id() -> str:
    """A new ULID. Put together here because `str(ULID())` takes many times as long, and every
    request needs one; what it adds, order within a millisecond, no run needs."""
    now = time.time_ns() // 1_000_000
    instant = _second(now >> 10) + _ALPHABET[now >> 5 & 31] + _ALPHABET[now & 31]
    return instant + os.urandom(16).translate(_LETTERS).decode()


def began_at(run_id: str) -> int:
    """When the request of a run came, as its id says: epoch milliseconds."""
    return int.from_bytes(base32.decode(run_id)[:6], "big")


def child_run_id(parent: str, step: str) -> str:
    """The id of the run that a run invokes by the step with this hash: always the same one, so that
    whoever asks for it need not have kept it. It has its parent's time."""
    digest = sha256(f"{parent}:{step}".encode()).digest()
    return base32.encode(base32.decode(parent)[:6] + digest[:10])


@lru_cache(maxsize=8)
def _second(number: int) -> str:
    """The first eight letters of all ULIDs of the same 1,024 milliseconds."""
    return base32.encode_timestamp((number << 10).to_bytes(6, "big"))[:8]
