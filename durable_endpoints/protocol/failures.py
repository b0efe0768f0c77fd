"""Errors as data: how an exception travels, is stored, and is read back.

The shape is Inngest's error object (its SDK protocol, "errors"): `name`, `message`, `stack`, and
the `cause` up to five levels deep.
"""

from __future__ import annotations

import traceback
from typing import Any, NamedTuple

import orjson

from durable_endpoints.protocol import places
from durable_endpoints.protocol.errors import DurableEndpointsError

_CAUSES = 5
_MESSAGE_LIMIT = 16_384
_STACK_LIMIT = 65_536


class Failure(NamedTuple):
    """What is remembered of an exception. `stack` and `at` stay inside: no client ever gets
    them."""

    name: str
    message: str
    stack: str = ""
    cause: Failure | None = None
    at: str = ""
    """The line of the user's code that raised it: "/srv/app.py:12, in charge"."""
    mistake: str = ""
    """The class of ours that a mistake in the code is, and is raised as again. A name alone does
    not tell: applications have a `LimitError` too."""

    def encode(self) -> bytes:
        return orjson.dumps(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """The wire form, with the stack."""
        form: dict[str, Any] = {
            "name": self.name,
            "message": self.message,
            "stack": self.stack,
            "__serialized": True,
        }
        if self.at:
            form["at"] = self.at
        if self.mistake:
            form["mistake"] = self.mistake
        if self.cause is not None:
            form["cause"] = self.cause.as_dict()
        return form

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" if self.message else self.name


def describe(error: BaseException, depth: int = 0) -> Failure:
    """Return `error` as data."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    stack = "".join(traceback.format_exception(error, chain=False)) if depth == 0 else ""
    return Failure(
        name=type(error).__name__,
        message=_printable(message_of(error))[:_MESSAGE_LIMIT],
        stack=_printable(stack)[-_STACK_LIMIT:],
        cause=describe(cause, depth + 1) if cause is not None and depth < _CAUSES else None,
        at=_printable(places.origin(error)) if depth == 0 else "",
    )


def decode(text: bytes) -> Failure:
    """Read a stored or received error object, forgiving what foreign SDKs leave out."""
    return _from_form(orjson.loads(text))


def _from_form(form: Any) -> Failure:
    if not isinstance(form, dict):
        return Failure("Error", str(form))
    cause = form.get("cause")
    return Failure(
        name=str(form.get("name") or "Error"),
        message=str(form.get("message") or form.get("error") or "Unknown error"),
        stack=str(form.get("stack") or ""),
        cause=_from_form(cause) if cause else None,
        at=str(form.get("at") or ""),
        mistake=str(form.get("mistake") or ""),
    )


def message_of(error: BaseException) -> str:
    """What an exception says, without the place that one of ours may have."""
    if isinstance(error, DurableEndpointsError) and error.where:
        return error.explanation
    try:
        return str(error)
    except Exception:
        return "(the exception's own __str__ failed)"


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
