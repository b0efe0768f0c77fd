"""Idempotency keys: a request that is repeated with its key gets the first one's answer.

(The `Idempotency-Key` header of draft-ietf-httpapi-idempotency-key-header.) The key is looked at
in the decorator, after the application's dependencies have authenticated the caller, and belongs to
the caller who used it first.

Who sends no such header may send another thing that names the request, as webhooks send the id of
their event: an endpoint makes a key of it with `idempotency_key`.
"""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple
from uuid import UUID

from starlette.requests import Request
from starlette.types import Scope

from durable_endpoints.body import StoredBody
from durable_endpoints.calls import call_here
from durable_endpoints.engines.base import KeyHolder
from durable_endpoints.errors import ConfigurationError
from durable_endpoints.inputs import content_kind, multipart_parts
from durable_endpoints.options import EndpointOptions
from durable_endpoints.protocol.messages import StoredRequest
from durable_endpoints.requests import fingerprint, header, printable

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
    """What should be a key is none."""


async def claim_of(
    scope: Scope, request: StoredRequest, options: EndpointOptions, function_id: str
) -> Claim | None:
    """The claim that a request makes; None if it makes none.

    `scope` is the one that authentication has worked on. Raises `BadKeyError` for a key that cannot
    be one, `ConfigurationError` for an `idempotency_key` that gives something else than a text, and
    whatever that raises.
    """
    key = await _made_key(scope, request, options, function_id)
    if key is not None:
        _check(key, "The idempotency key that this endpoint makes of a request")
        # A line feed can be in no header: nobody can take such a key by sending it. And the
        # endpoint has said what makes two requests the same, so bodies are not compared. Mounted
        # applications have keys of their own.
        bare = request._replace(body=b"", headers=[])
        whole = f"{printable(request.root_path)} {function_id}\n{key}"
        return Claim(whole, await _caller(scope, options), fingerprint(bare, None))
    raw = header(request.headers, b"idempotency-key")
    if raw is None:
        return None
    key = raw.strip()
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]  # the draft's structured-field string; bare keys are more common
    _check(key, "Idempotency-Key")
    form = multipart_parts(request) if content_kind(request) == "multipart/form-data" else None
    return Claim(key, await _caller(scope, options), fingerprint(request, form))


async def _made_key(
    scope: Scope, request: StoredRequest, options: EndpointOptions, function_id: str
) -> str | None:
    """What the endpoint's `idempotency_key` makes of a request; None without one."""
    if options.idempotency_key is None:
        return None
    readable = Request(scope, StoredBody(request.body).receive)
    key = await call_here(options.idempotency_key, readable)
    if key is not None and not isinstance(key, str):
        raise ConfigurationError(
            f"idempotency_key of {function_id!r} gave {key!r}: give a text, or None "
            "for a request without a key of its own"
        )
    return key


def _check(key: str, what: str) -> None:
    if not 0 < len(key) <= _MAX_LENGTH or not all(" " <= letter <= "~" for letter in key):
        raise BadKeyError(
            f"{what} must be a printable ASCII text of 1 to {_MAX_LENGTH} characters."
        )


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
        given = await call_here(options.idempotency_scope, Request(scope))
        if not isinstance(given, str | int | UUID):  # one text for each caller, each time
            raise ConfigurationError(
                f"idempotency_scope gave {given!r}: give a text that says who the caller is"
            )
        caller = ["scope", str(given)]
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
