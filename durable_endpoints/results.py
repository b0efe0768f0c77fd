"""A step's result as JSON text, and back as what the step's function says it returns.

What a step returns is decoded again at once, so that the first execution sees exactly what a replay
will see. A function that is annotated to return plain JSON values, or nothing, has its results
kept as they are. Any other type (a model, a dataclass, a datetime, a tuple …) goes through
pydantic, by that type; what would come back as something else is refused, with its place.
"""

from __future__ import annotations

import inspect
import types
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from durable_endpoints.annotations import (
    NOTHING,
    annotation_of,
    innermost,
    is_json,
    return_type,
    spell,
)
from durable_endpoints.calls import name_of, unwrap
from durable_endpoints.errors import StepValueError, UsageError
from durable_endpoints.protocol.messages import CONNECTION_HEADERS
from durable_endpoints.protocol.values import NotJsonError, decode, encode, round_trip


class Codec(Protocol):
    """How one kind of result is kept."""

    def encode(self, value: Any) -> tuple[bytes, Any]:
        """The JSON text of `value`, and what decoding it gives. Raises `NotJsonError`."""
        ...

    def decode(self, text: bytes) -> Any:
        """What was encoded. Raises `NotJsonError` if it does not fit any more."""
        ...


class _Plain:
    """JSON values as they are. A tuple comes back as a list."""

    def __init__(self, note: str = "") -> None:
        self._note = note

    def encode(self, value: Any) -> tuple[bytes, Any]:
        try:
            return round_trip(value)
        except NotJsonError as error:
            raise NotJsonError(error.path, error.problem + self._note) from None

    def decode(self, text: bytes) -> Any:
        return decode(text)


class Unresolved(_Plain):
    """What there is for an annotation with names that are not known, or not yet."""


JSON: Codec = _Plain()
_UNANNOTATED = _Plain(
    "; or say in the function's annotation what it returns (`-> Report`): then the step returns "
    "that, now and in a replay"
)


class _Response:
    """An `httpx.Response`: status, headers, decoded body, and what was asked, if it has that.

    What belonged to the connection alone (RFC 9110 §7.6.1), or is not true of a decoded body, is
    not kept.
    """

    _NOT_KEPT = CONNECTION_HEADERS | {"content-encoding"}

    def encode(self, value: Any) -> tuple[bytes, Any]:
        body: bytes = value.content
        kept: dict[str, Any] = {
            "status": value.status_code,
            "headers": [
                pair for pair in value.headers.multi_items() if pair[0] not in self._NOT_KEPT
            ],
        }
        try:
            asked = value.request
        except RuntimeError:  # "The request instance has not been set on this response."
            pass
        else:
            kept["request"] = {"method": asked.method, "url": str(asked.url)}
        try:
            kept["body"] = body.decode()
        except UnicodeDecodeError:
            kept["bodyBase64"] = b64encode(body).decode()
        text = encode(kept)
        return text, self.decode(text)

    def decode(self, text: bytes) -> Any:
        import httpx

        kept = decode(text)
        in_base64 = kept.get("bodyBase64")
        body = kept["body"].encode() if in_base64 is None else b64decode(in_base64)
        headers = [(name, value) for name, value in kept["headers"]]
        asked = kept.get("request")
        request = httpx.Request(asked["method"], asked["url"]) if asked is not None else None
        return httpx.Response(kept["status"], headers=headers, content=body, request=request)


RESPONSES: Codec = _Response()

_codecs: dict[int, tuple[types.CodeType, Any, Codec | str]] = {}
"""By the identity of a function's code, which closures share: the code, so that the identity stays
its own, the annotation that was looked at, and what came of it: a codec, or why there is none."""
_MOST_CODECS = 10_000


def codec_of(step: str, function: Callable[..., Any]) -> Codec:
    """How the results of `function` are kept, by its return annotation.

    Raises `UsageError` for what is no function, and `StepValueError` if no value of the annotated
    type can be kept.
    """
    if type(function) is types.FunctionType and not function.__dict__:
        # One as it was written, nearly always: it wraps nothing.
        written = _codecs.get(id(function.__code__))
        if written is not None and written[1] is function.__annotations__.get("return"):
            found = written[2]
            if not isinstance(found, str):
                return found
    check_callable(step, function)
    inner = unwrap(function)
    annotation = annotation_of(inner)
    if annotation is NOTHING:
        return _UNANNOTATED
    code = getattr(innermost(inner), "__code__", None)
    known = _codecs.get(id(code)) if code is not None else None
    if known is not None and (known[1] is annotation or known[1] == annotation):
        found = known[2]
    else:
        found = _find(inner, annotation, code)
    if isinstance(found, str):
        raise StepValueError(
            f"step {step!r}: {name_of(inner)} says it returns {found}. Return its data instead: "
            "JSON values, or a pydantic model, a dataclass, a TypedDict or a NamedTuple of such; "
            "and build the rest from it outside the step"
        )
    return found


def _find(function: Any, annotation: Any, code: types.CodeType | None) -> Codec | str:
    returned = return_type(function, annotation)
    found: Codec | str
    if returned.problem:
        found = Unresolved(
            f"; the function's annotation `-> {annotation}` does not help, because it cannot be "
            f"resolved ({returned.problem}): import what it names at run time"
        )
    else:
        found = codec_for(returned.type)
    if code is not None and not returned.is_local:
        if len(_codecs) >= _MOST_CODECS:  # functions that are made anew again and again
            _codecs.clear()
        _codecs[id(code)] = code, annotation, found
    return found


def codec_for(type_: Any) -> Codec | str:
    """The codec of a type, or why it has none, as in "X, which cannot be kept: …"."""
    try:
        if is_json(type_):
            return _UNANNOTATED if type_ is Any else JSON
    except Exception:
        pass  # a TypedDict of names that only type checkers see: pydantic tells better
    from durable_endpoints.typed_results import typed_codec

    return typed_codec(type_, spell(type_))


def fits(step: str, codec: Codec, text: bytes) -> Any:
    """What is remembered of a step, as what its function returns now. Raises `StepValueError`."""
    try:
        return codec.decode(text)
    except NotJsonError as error:
        raise StepValueError(
            f"what is remembered of step {step!r} does not fit what its function is annotated to "
            f"return now: {error}. While runs are under way, give new fields defaults, or give the "
            "changed step another name"
        ) from None


def check_callable(step: str, function: Any) -> None:
    """Raise `UsageError` for what is no function, and say what to pass instead."""
    if not callable(unwrap(function)):
        _refuse(step, function)


def _refuse(step: str, given: Any) -> NoReturn:
    if inspect.iscoroutine(given):
        given.close()
        what = f"the coroutine of {given.__qualname__}(…), which would run at once"
    else:
        what = f"{given!r}, which is no function"
    raise UsageError(
        f"step {step!r} was given {what}: pass the function itself, and its arguments after it, "
        f"as in step.run({step!r}, function, argument)"
    )
