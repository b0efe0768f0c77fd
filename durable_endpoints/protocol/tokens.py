"""Run tokens: a signed capability to read one run's output and stream, and nothing else, or to
cancel it as well.

A token is an HMAC over the run's id and the purpose, so it opens exactly one run, carries no
secret, needs no row of its own, and is killed by rotating the signing key. It has no expiry: it is
good for as long as the run's record exists.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from enum import Enum
from hashlib import sha256


class Grant(Enum):
    """What a token allows. The values are what it is signed for."""

    READ = b"durable-endpoints run token v1\0"
    CANCEL = b"durable-endpoints run token v1 with cancel\0"
    """To read, and to cancel."""


def sign_run(key: bytes, run_id: str, grant: Grant) -> str:
    """Return the token for `run_id`: 43 URL-safe characters."""
    digest = hmac.new(key, grant.value + run_id.encode("utf-8"), sha256).digest()
    return urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def verify_run(keys: Iterable[bytes], run_id: str, token: str) -> Grant | None:
    """What `token` allows with `run_id` under any of `keys`, compared in constant time; None if it
    does not open the run."""
    presented = token.encode("utf-8", "replace")
    found = None
    for key in keys:
        for grant in Grant:
            if hmac.compare_digest(sign_run(key, run_id, grant).encode("ascii"), presented):
                found = grant
    return found
