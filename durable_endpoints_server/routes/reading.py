"""What reading routes share: how ids, numbers and instants are asked for, and told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final
from uuid import NAMESPACE_OID, UUID, uuid5

from starlette.requests import Request

from durable_endpoints_server.routes.answers import ApiError

ACCOUNT_ID: Final = "00000000-0000-4000-a000-000000000000"
ENVIRONMENT_ID: Final = "00000000-0000-4000-b000-000000000000"
"""A server has one account and one environment: those of Inngest's development server."""

_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_LAST = 253_402_300_799_999
"""The end of the year 9999, in epoch milliseconds."""


def run_id_of(request: Request) -> str:
    """The run id in the path. Raises `ApiError` 400 for what is no ULID."""
    return checked_run_id(request.path_params["run_id"])


def checked_run_id(given: object) -> str:
    """A run id in its usual form. Raises `ApiError` 400 for what is no ULID."""
    if not isinstance(given, str) or not is_ulid(given):
        raise ApiError(
            400, f"{given!r:.100} is not the id of a run: those are ULIDs.", "invalid_id"
        )
    return given.upper()


def is_ulid(text: str) -> bool:
    """Whether a text may be the id of a run."""
    return _ULID.fullmatch(text.upper()) is not None


def no_run(run_id: str) -> ApiError:
    """The refusal for a run that is unknown, or past its retention."""
    return ApiError(404, f"There is no run {run_id}.", "not_found")


def application_id(app: str) -> UUID:
    """The id of an application, as Inngest's server makes it."""
    return uuid5(NAMESPACE_OID, UUID(ENVIRONMENT_ID).bytes.decode("latin-1") + app)


def endpoint_id(app: str, function_id: str) -> str:
    """The id of one of its endpoints, as Inngest's server makes it."""
    parent = application_id(app).bytes.decode("latin-1")
    return str(uuid5(NAMESPACE_OID, parent + function_id))


def number_of(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    """A number from 1 to `most` in a query. Raises `ApiError` 400 for anything else."""
    given = query.get(name)
    if given is None:
        return default
    if not (given.isascii() and given.isdecimal() and len(given) < 10 and 0 < int(given) <= most):
        raise ApiError(400, f"{name}={given!r}: give a number from 1 to {most}.", "invalid_query")
    return int(given)


def instant_of(query: Mapping[str, str], name: str) -> int | None:
    """An instant in a query, in RFC 3339 or epoch milliseconds, as the latter; None if it is not
    given. Raises `ApiError` 400 for anything else."""
    given = query.get(name)
    if given is None:
        return None
    try:
        if given.isascii() and given.isdecimal():
            instant = int(given[:20])
        else:
            instant = round(datetime.fromisoformat(given).astimezone(UTC).timestamp() * 1_000)
    except (ValueError, OverflowError):
        instant = -1
    if not 0 <= instant <= _LAST:
        raise ApiError(
            400,
            f"{name}={given!r}: give a time such as 2026-01-31T12:00:00Z, or epoch milliseconds.",
            "invalid_query",
        )
    return instant


def time_of(instant: int | None) -> str | None:
    """An instant in RFC 3339."""
    if instant is None:
        return None
    told = datetime.fromtimestamp(instant / 1_000, UTC).isoformat(timespec="milliseconds")
    return told.replace("+00:00", "Z")
