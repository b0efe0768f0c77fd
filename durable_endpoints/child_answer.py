"""What an endpoint's answer gives the run that has invoked it: what its annotation says.

Imported when the first endpoint is invoked: pydantic and httpx are slow to import.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Protocol, get_args
from weakref import WeakKeyDictionary

import httpx
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from starlette.responses import Response

from durable_endpoints.annotations import NOTHING, annotation_of, return_type, spell
from durable_endpoints.errors import UsageError
from durable_endpoints.protocol.messages import StoredResponse
from durable_endpoints.protocol.values import NotJsonError, decode
from durable_endpoints.results import RESPONSES
from durable_endpoints.typed_results import first_problem, for_pydantic

if TYPE_CHECKING:
    from durable_endpoints.endpoint import Endpoint


class Reader(Protocol):
    """Makes a value of an answer. Raises `NotJsonError` if it is no such value."""

    def __call__(self, response: httpx.Response) -> Any: ...


class AnswerCodec:
    """Keeps a whole answer, a `StoredResponse`, and gives what the endpoint's annotation makes of
    it: a `Codec`."""

    def __init__(self, read: Reader) -> None:
        self._read = read

    def encode(self, value: StoredResponse) -> tuple[bytes, Any]:
        text, response = RESPONSES.encode(_as_response(value))
        return text, self._read(response)

    def decode(self, text: bytes) -> Any:
        return self._read(RESPONSES.decode(text))


def text_of(answer: StoredResponse) -> str:
    """The body as text."""
    return _as_response(answer).text


def _as_response(answer: StoredResponse) -> httpx.Response:
    return httpx.Response(answer.status, headers=answer.headers, content=answer.body)


_codecs: WeakKeyDictionary[Endpoint, AnswerCodec] = WeakKeyDictionary()


def answers_of(id: str, endpoint: Endpoint) -> AnswerCodec:
    """How the step `id` reads the answers of `endpoint`.

    Raises `UsageError` for an annotation that cannot be resolved, or that no JSON fits.
    """
    known = _codecs.get(endpoint)
    if known is not None:
        return known
    annotation = annotation_of(endpoint.function)
    if annotation is NOTHING:
        codec, is_local = AnswerCodec(_json_or_response), False
    else:
        returned = return_type(endpoint.function, annotation)
        if returned.problem:
            raise UsageError(
                f"step.invoke({id!r}): what {endpoint.name} returns cannot be told from its "
                f"annotation `-> {annotation}` ({returned.problem}): import what it names at run "
                "time"
            )
        codec, is_local = AnswerCodec(_reader_for(id, endpoint, returned.type)), returned.is_local
    if not is_local:
        _codecs[endpoint] = codec
    return codec


def _reader_for(id: str, endpoint: Endpoint, type_: Any) -> Reader:
    if type_ is Any:
        return _json_or_response
    if any(_is_response(part) for part in (type_, *get_args(type_))):
        return _response
    try:
        return _Typed(TypeAdapter(for_pydantic(type_)), type_)
    except (PydanticUserError, NameError, TypeError) as error:
        raise UsageError(
            f"step.invoke({id!r}): {endpoint.name} is annotated to return {spell(type_)}, and no "
            f"answer can be read as that: {error}"
        ) from None


def _is_response(type_: Any) -> bool:
    return inspect.isclass(type_) and issubclass(type_, Response)


def _response(response: httpx.Response) -> Any:
    return response


def _json_or_response(response: httpx.Response) -> Any:
    return decode(response.content) if _is_json(response) else response


def _is_json(response: httpx.Response) -> bool:
    kind: str = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


class _Typed:
    """Reads values of one type, as clients do: by the aliases of fields, where they have any."""

    def __init__(self, adapter: TypeAdapter[Any], type_: Any) -> None:
        self._adapter = adapter
        self._type = type_

    def __call__(self, response: httpx.Response) -> Any:
        if not _is_json(response) and response.content:
            if self._type in (str, bytes):
                return response.text if self._type is str else response.content
            kind = response.headers.get("content-type", "no content type")
            raise NotJsonError("$", f"it is no JSON, but {kind}")
        try:
            return self._adapter.validate_json(
                response.content or b"null", by_alias=True, by_name=True
            )
        except ValidationError as error:
            raise NotJsonError(*first_problem(error)) from None
