"""Run tokens: a signed capability to read one run's output, and nothing else.

A token is an HMAC over the run's id and the purpose, so it opens exactly one run, carries no
secret, needs no row of its own, and is killed by rotating the signing key. It has no expiry: it is
good for as long as the run's record exists.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from hashlib import sha256

_PURPOSE = b"durable-endpoints run token v1\0"


def sign_run(key: bytes, run_id: str) -> str:
    """Return the token for `run_id`: 43 URL-safe characters."""
    digest = hmac.new(key, _PURPOSE + run_id.encode("utf-8"), sha256).digest()
    return urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def verify_run(keys: Iterable[bytes], run_id: str, token: str) -> bool:
    """Whether `token` opens `run_id` under any of `keys`, compared in constant time."""
    presented = token.encode("utf-8", "replace")
    matches = False
    for key in keys:
        matches |= hmac.compare_digest(sign_run(key, run_id).encode("ascii"), presented)
    return matches
