"""Idempotency keys: a request that is repeated with its key gets the first one's answer.

(The `Idempotency-Key` header of draft-ietf-httpapi-idempotency-key-header.) The key is looked at
in the decorator, after the application's dependencies have authenticated the caller, and belongs to
the caller who used it first.
"""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

from starlette.requests import Request
from starlette.types import Scope

from durable_endpoints.calls import call_here
from durable_endpoints.engines.base import KeyHolder
from durable_endpoints.inputs import content_kind, multipart_parts
from durable_endpoints.options import EndpointOptions
from durable_endpoints.protocol.messages import StoredRequest
from durable_endpoints.requests import fingerprint

_MAX_LENGTH = 255


class Claim(NamedTuple):
    """One request's claim to a key."""

    key: str
    scope: str
    """A digest of who the caller is."""
    fingerprint: str
    """A digest of the request."""


NO_CLAIM = (None, "", "")
"""What stands in the place of a claim in the run of a request without a key."""


class BadKeyError(Exception):
    """The header is there, but no key."""


async def claim_of(
    raw: str, scope: Scope, request: StoredRequest, options: EndpointOptions
) -> Claim:
    """The claim that a request makes with the header value `raw`. Raises `BadKeyError`.

    `scope` is the one that authentication has worked on.
    """
    key = raw.strip()
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]  # the draft's structured-field string; bare keys are more common
    if not 0 < len(key) <= _MAX_LENGTH or not all(" " <= letter <= "~" for letter in key):
        raise BadKeyError(
            f"Idempotency-Key must be a printable ASCII text of 1 to {_MAX_LENGTH} characters."
        )
    form = multipart_parts(request) if content_kind(request) == "multipart/form-data" else None
    return Claim(key, await _caller(scope, options), fingerprint(request, form))


def conflict(claim: Claim, holder: KeyHolder) -> str | None:
    """Why the claim is no repeat of the run that holds the key; None if it is one."""
    if claim.scope != holder.scope:
        return "This Idempotency-Key is in use by another caller."
    if claim.fingerprint != holder.fingerprint:
        return (
            "This Idempotency-Key was used with another request: another method, path, query or "
            "body. Use a new key."
        )
    return None


async def _caller(scope: Scope, options: EndpointOptions) -> str:
    """A digest of who sends the request: what the endpoint says, else the authenticated user's
    identity, else the credentials themselves."""
    if options.idempotency_scope is not None:
        caller = ["scope", str(await call_here(options.idempotency_scope, Request(scope)))]
    else:
        user = scope.get("user")
        if user is not None and getattr(user, "is_authenticated", False):
            try:
                caller = ["user", str(user.identity)]
            except NotImplementedError:  # Starlette's BaseUser without an identity of its own
                caller = ["user", str(user.display_name)]
        else:
            credentials = (b"authorization", b"cookie")
            caller = [v.decode("latin-1") for k, v in sorted(scope["headers"]) if k in credentials]
    digest = sha256()
    for part in caller:
        digest.update(len(part).to_bytes(8, "big") + part.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
