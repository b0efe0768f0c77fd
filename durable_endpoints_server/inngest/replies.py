"""What an application replies to a re-entry (Inngest SDK protocol, "call responses")."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

import httpx

from durable_endpoints.protocol.messages import StoredResponse
from durable_endpoints_server.inngest import loose_json, results
from durable_endpoints_server.inngest.ops import WireOp, read_ops
from durable_endpoints_server.inngest.refusals import MalformedError

_SDK: Final = "x-inngest-sdk"
_NO_RETRY: Final = "x-inngest-no-retry"
_PASSING: Final = frozenset({401, 403, 429, 502, 503, 504})
"""Statuses of whoever stands before an application that cannot be reached, and of one that has
other keys."""
_LEAST_DELAY: Final = 1_000
_MOST_DELAY: Final = 86_400_000


class Ops(NamedTuple):
    """The handler has found these, or run one of them."""

    ops: list[WireOp]
    delay: int | None = None
    """When a failed one shall be tried again, in milliseconds, if the application says so."""


class Answered(NamedTuple):
    """The handler has returned, and this is its response as it is: SDKs that wrap nothing around it
    (Go's) reply so."""

    response: StoredResponse


class Threw(NamedTuple):
    """The handler itself has failed."""

    error: bytes
    is_final: bool
    delay: int | None = None


class Lost(NamedTuple):
    """There was no reply of the SDK, for a reason that passes: it was no try."""

    reason: str


Reply = Ops | Answered | Threw | Lost


def read_reply(status: int, headers: httpx.Headers, body: bytes, now: int) -> Reply:
    """What a reply means; `now` in epoch milliseconds."""
    if _SDK not in headers:
        return _from_nobody(status)
    if status != 206 and status < 500 and _NO_RETRY not in headers:
        return Answered(StoredResponse(status, results.own_headers(headers.multi_items()), body))
    delay = _retry_after(headers.get("retry-after", ""), now)
    try:
        value = loose_json.read(body) if body else None
        if status == 206:
            return Ops(read_ops([value] if isinstance(value, dict) else value), delay)
    except (ValueError, MalformedError) as error:
        problem = f"the application's reply ({status}) cannot be read: {error}"
        return Threw(results.error("ReplyError", problem), is_final=False)
    is_final = headers.get(_NO_RETRY, "").lower() == "true"
    return Threw(results.error_of(value), is_final, delay)


def _from_nobody(status: int) -> Reply:
    if status == 401:
        return Lost("it answered 401: do both sides have the same signing key?")
    if status in _PASSING:
        return Lost(f"it answered {status}")
    problem = (
        f"the application answered {status} without {_SDK}: the endpoint is not served there, or "
        "something before it has answered"
    )
    return Threw(results.error("ReplyError", problem), is_final=False)


def _retry_after(text: str, now: int) -> int | None:
    """Seconds, or a date (RFC 9110 §10.2.3, or ISO 8601), as milliseconds within bounds."""
    text = text.strip()
    if not text:
        return None
    try:
        wait = float(text) * 1_000
    except ValueError:
        moment = _moment(text)
        if moment is None:
            return None
        wait = moment.timestamp() * 1_000 - now
    if not math.isfinite(wait):
        return None
    return int(min(max(wait, _LEAST_DELAY), _MOST_DELAY))


def _moment(text: str) -> datetime | None:
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = parse(text)
        except (ValueError, TypeError):
            continue
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return None
