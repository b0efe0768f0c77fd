"""What `@endpoint(...)` accepts, and what of it `configure(...)` may change during a run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal, TypedDict, get_args

from starlette.requests import Request
from starlette.responses import Response

from durable_endpoints.errors import ConfigurationError
from durable_endpoints.protocol.durations import Duration, parse_duration

AsyncResponder = Callable[[Request, str, str], Response | Awaitable[Response]]
"""`(request, run_id, token) -> Response`, may be async: answers a client whose run goes on."""

AsyncResponse = Literal["redirect", "token"] | AsyncResponder
RedirectUrl = str | Callable[[str, str], str | Awaitable[str]]
"""A path, an absolute URL, or `(run_id, token) -> str`, which may be async."""

IdempotencyScope = Callable[[Request], str | Awaitable[str]]
"""Tells callers apart: equal text means the same caller."""

IdempotencyKey = Callable[[Request], str | Awaitable[str | None] | None]
"""Tells requests apart: equal text means the same request, sent again. None: the header counts."""

Checkpoint = Literal["each", "background"]
OnUnavailable = Literal["fail", "proceed"]


class Changes(TypedDict, total=False):
    """What `configure` changes. See `endpoint`."""

    retries: int | None
    async_response: AsyncResponse | None
    async_redirect_url: RedirectUrl | None
    omit_request_body: bool | None
    omit_response_body: bool | None
    checkpoint: Checkpoint | None


class Defaults(Changes, total=False):
    """What the middleware takes for all endpoints of its application. See `endpoint`."""

    respond_within: Duration | None
    max_runtime: Duration | None
    idempotency_scope: IdempotencyScope | None
    idempotency_key: IdempotencyKey | None
    sse: bool | None
    cancellable: bool | None
    on_unavailable: OnUnavailable | None


MAX_RETRIES = 20
"""As in Inngest's endpoint options."""


@dataclass(frozen=True)
class EndpointOptions:
    """The options of one endpoint; durations are already in milliseconds."""

    function_id: str | None = None
    retries: int = 3
    async_response: AsyncResponse = "redirect"
    async_redirect_url: RedirectUrl | None = None
    omit_request_body: bool = False
    omit_response_body: bool = False
    checkpoint: Checkpoint = "each"
    respond_within: int = 50_000
    max_runtime: int | None = None
    idempotency_scope: IdempotencyScope | None = None
    idempotency_key: IdempotencyKey | None = None
    sse: bool = True
    cancellable: bool = False
    on_unavailable: OnUnavailable = "fail"

    def change(self, **changes: Any) -> EndpointOptions:
        """Return a copy with `changes`, checked. `None` means: as it is."""
        given = {name: value for name, value in changes.items() if value is not None}
        unknown = given.keys() - {field.name for field in fields(self)}
        if unknown:
            raise ConfigurationError(unknown_option(min(unknown), OPTIONS))
        for name, value in given.items():
            given[name] = _CHECKS[name](name, value) if name in _CHECKS else value
        return replace(self, **given) if given else self


OPTIONS = tuple(field.name for field in fields(EndpointOptions))
"""The names of what `@endpoint` takes."""


def unknown_option(name: str, known: Iterable[str]) -> str:
    """What to say of an option that is none of those that are `known`: what may have been meant."""
    known = list(known)
    close = get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(known))}"
    return f"unknown option {name!r}: {hint}"


def _check_retries(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_RETRIES:
        raise ConfigurationError(
            f"retries={value!r}: give a whole number from 0 to {MAX_RETRIES}; 3 means four tries"
        )
    return value


def _check_async_response(name: str, value: Any) -> AsyncResponse:
    if value in ("redirect", "token") or callable(value):
        return value  # type: ignore[no-any-return]
    raise ConfigurationError(
        f'async_response={value!r}: give "redirect", "token", or a callable '
        "(request, run_id, token) -> Response"
    )


def _check_redirect_url(name: str, value: Any) -> RedirectUrl:
    if callable(value):
        return value  # type: ignore[no-any-return]
    if isinstance(value, str) and (value.startswith("/") or "://" in value):
        return value
    raise ConfigurationError(
        f"async_redirect_url={value!r}: give a path such as '/wait', an absolute URL, or a "
        "callable (run_id, token) -> str"
    )


def _check_checkpoint(name: str, value: Any) -> Checkpoint:
    if value in get_args(Checkpoint):
        return value  # type: ignore[no-any-return]
    raise ConfigurationError(f'checkpoint={value!r}: give "each" or "background"')


def _check_on_unavailable(name: str, value: Any) -> OnUnavailable:
    if value in get_args(OnUnavailable):
        return value  # type: ignore[no-any-return]
    raise ConfigurationError(f'on_unavailable={value!r}: give "fail" or "proceed"')


def _check_flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ConfigurationError(f"{name}={value!r}: give True or False")


def _check_duration(name: str, value: Duration) -> int:
    try:
        milliseconds = parse_duration(value)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{name}: {error}") from None
    if milliseconds == 0:
        raise ConfigurationError(f"{name} must be longer than nothing")
    return milliseconds


def _check_function_id(name: str, value: Any) -> str:
    if isinstance(value, str) and 0 < len(value) <= 512:
        return value
    raise ConfigurationError(f"function_id={value!r}: give a text of 1 to 512 characters")


def _check_callable(name: str, value: Any) -> Any:
    if callable(value):
        return value
    raise ConfigurationError(f"{name}={value!r}: give a callable (request) -> str")


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "function_id": _check_function_id,
    "retries": _check_retries,
    "async_response": _check_async_response,
    "async_redirect_url": _check_redirect_url,
    "omit_request_body": _check_flag,
    "omit_response_body": _check_flag,
    "checkpoint": _check_checkpoint,
    "respond_within": _check_duration,
    "max_runtime": _check_duration,
    "idempotency_scope": _check_callable,
    "idempotency_key": _check_callable,
    "sse": _check_flag,
    "cancellable": _check_flag,
    "on_unavailable": _check_on_unavailable,
}
