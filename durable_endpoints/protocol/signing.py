"""Signing keys: how they are written, shown as a bearer token, and sign requests between an engine
and an application (Inngest SDK protocol, "authentication").

A key is written as `signkey-<environment>-<hex>`, or as any text without the prefix. An API caller
shows its SHA-256; a re-entry is signed by HMAC-SHA-256 over the body and a time. That signature
knows neither method nor path nor run, so a second one, over all of these, goes beside it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from hashlib import sha256
from typing import Any, Final
from urllib.parse import parse_qs

import orjson

TOLERANCE: Final = 300
"""Seconds for which a signature is good, before and after its time."""
SIGNATURE_HEADER: Final = "x-inngest-signature"
REQUEST_SIGNATURE_HEADER: Final = "x-durable-signature"

_EXACT: Final = 2**53
"""Integers beyond it have gaps where all numbers are floating point."""
_PREFIX = re.compile(r"^signkey-\w+-")


def without_prefix(key: str) -> str:
    """The key itself: what signs."""
    return _PREFIX.sub("", key)


def hashed(key: str) -> str:
    """The key as an API caller shows it: its prefix, and the hash of the rest."""
    found = _PREFIX.match(key)
    prefix = found.group() if found else ""
    secret = key[len(prefix) :]
    try:
        raw = bytes.fromhex(secret)
    except ValueError:
        raw = secret.encode()
    return prefix + sha256(raw).hexdigest()


def is_key(presented: str, keys: Iterable[str]) -> bool:
    """Whether `presented` is one of `keys`, as it is or hashed, with or without its prefix. Takes
    as long for a nearly right one."""
    shown = without_prefix(presented).encode("utf-8", "replace")
    found = False
    for key in keys:
        for accepted in (without_prefix(key), without_prefix(hashed(key))):
            found |= hmac.compare_digest(accepted.encode(), shown)
    return found


def sign(key: str, body: bytes, now: int) -> str:
    """The signature header for a body; `now` in seconds of UTC epoch time."""
    return f"t={now}&s={_digest(key, body + str(now).encode())}"


def verify(keys: Iterable[str], signature: str, body: bytes, now: int) -> bool:
    """Whether one of `keys` signed the body, as it is or in canonical JSON, and not long ago."""
    at, digest = _read(signature, "s")
    if at is None or abs(now - at) > TOLERANCE:
        return False
    found = False
    for key in keys:
        for form in _forms(body):
            expected = _digest(key, form + str(at).encode())
            found |= hmac.compare_digest(expected.encode(), digest)
    return found


def sign_request(key: str, method: str, path: str, run_id: str, body: bytes, now: int) -> str:
    """The header that binds a re-entry to its method, path with query, run, body and time."""
    return f"t={now}&v1={_digest(key, _request(method, path, run_id, body, now))}"


def verify_request(
    keys: Iterable[str], signature: str, method: str, path: str, run_id: str, body: bytes, now: int
) -> bool:
    """Whether one of `keys` signed exactly this re-entry, and not long ago."""
    at, digest = _read(signature, "v1")
    if at is None or abs(now - at) > TOLERANCE:
        return False
    found = False
    for key in keys:
        expected = _digest(key, _request(method, path, run_id, body, at))
        found |= hmac.compare_digest(expected.encode(), digest)
    return found


def _request(method: str, path: str, run_id: str, body: bytes, at: int) -> bytes:
    head = orjson.dumps(["durable-endpoints re-entry v1", method.upper(), path, run_id, at])
    return head + sha256(body).digest()


def _digest(key: str, message: bytes) -> str:
    return hmac.new(without_prefix(key).encode(), message, sha256).hexdigest()


def _read(signature: str, field: str) -> tuple[int | None, bytes]:
    """The time and the digest in a header."""
    try:
        fields = parse_qs(signature, max_num_fields=8)
    except ValueError:
        return None, b""
    at, digest = fields.get("t", [""])[0], fields.get(field, [""])[0]
    if not (at.isascii() and at.isdecimal() and len(at) < 15):
        return None, b""
    return int(at), digest.encode("utf-8", "replace")


def canonical(body: bytes) -> bytes:
    """A body that is JSON in the one form that every SDK makes of it (RFC 8785); any other as it
    is."""
    try:
        return orjson.dumps(_canonical(orjson.loads(body))) if body else b""
    except (ValueError, TypeError, RecursionError):
        return body


def _forms(body: bytes) -> Iterator[bytes]:
    """The body, and its canonical form if it is JSON: other SDKs sign that."""
    yield body
    if (form := canonical(body)) != body:
        yield form


def _canonical(value: Any) -> Any:
    """JSON with its keys in the order of their UTF-16 code units, and numbers as ECMAScript writes
    them (RFC 8785 §3.2)."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return {key: _canonical(value[key]) for key in keys}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, float) or (type(value) is int and abs(value) > _EXACT):
        return _number(float(value))
    return value


def _number(value: float) -> float | orjson.Fragment:
    if value == 0:
        return orjson.Fragment("0")
    if 1e-6 <= abs(value) < 1 or (value.is_integer() and abs(value) < 1e21):
        return orjson.Fragment(format(Decimal(repr(value)).normalize(), "f"))
    return value
