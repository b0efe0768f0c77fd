"""One call in terms of httpx, for the asynchronous and the blocking driver alike. No I/O.

The request is built once by the user's own client, with all that it adds, and its body is kept, so
that each repetition is the same request byte for byte. Requests and responses are made of the
classes that the client itself uses, so that httpx2 works without being imported.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.metadata import version
from typing import Any, Protocol, TypedDict

import httpx

from durable_endpoints.client.asking import Asking, origin
from durable_endpoints.client.conversation import Conversation, Reading
from durable_endpoints.client.errors import StreamError
from durable_endpoints.client.messages import Ending
from durable_endpoints.client.pacing import Pacing

GIVE_UP_AFTER = 300.0
OWN_TIMEOUT = httpx.Timeout(10.0, read=None)
"""Of a client that was made for one call; what reading may take is a matter of `Pacing`."""

_HTTPX_DEFAULT = 5.0
_FRAMING = {b"content-length", b"transfer-encoding"}
_EVENT_STREAM = "text/event-stream"


class Sending(TypedDict, total=False):
    """What to send, and how long to insist. `headers` to `files` are as in httpx."""

    method: str
    """GET, unless said otherwise."""
    headers: Mapping[str, str] | Sequence[tuple[str, str]] | None
    params: Any
    json: Any
    content: Any
    """Bytes, a text, or an iterable of bytes. That is read into memory first, because it could not
    be read a second time."""
    data: Mapping[str, Any] | None
    files: Any
    idempotency_key: str | None
    """Fresh and random, unless given. Give one, and keep it, to be able to repeat the call after
    a crash of this very process."""
    last_event_id: str | None
    """With the URL of a run: go on behind this position."""
    give_up_after: float
    """Seconds after the last sign of life (a frame or a heartbeat), 300 unless said otherwise;
    `math.inf` is never."""
    pacing: Pacing


class AsyncClient(Protocol):
    """What is used of `httpx.AsyncClient` and `httpx2.AsyncClient`."""

    @property
    def cookies(self) -> Any: ...
    @property
    def timeout(self) -> Any: ...
    def build_request(self, *args: Any, **options: Any) -> Any: ...
    def request(self, *args: Any, **options: Any) -> Awaitable[Any]: ...
    def send(self, *args: Any, **options: Any) -> Awaitable[Any]: ...


class SyncClient(Protocol):
    """What is used of `httpx.Client` and `httpx2.Client`."""

    @property
    def cookies(self) -> Any: ...
    @property
    def timeout(self) -> Any: ...
    def build_request(self, *args: Any, **options: Any) -> Any: ...
    def request(self, *args: Any, **options: Any) -> Any: ...
    def send(self, *args: Any, **options: Any) -> Any: ...


CALLBACKS = ("on_metadata", "on_data", "on_commit", "on_rollback", "on_progress", "on_log")


def check(sending: Sending, client: AsyncClient | SyncClient | None, asynchronous: bool) -> None:
    """Raise `TypeError` or `ValueError` for what would do nothing, or fail where nobody looks."""
    for name in sending.keys() - Sending.__annotations__.keys():
        close = get_close_matches(name, [*Sending.__annotations__, *CALLBACKS], 1)
        others = ", ".join([*CALLBACKS, "client", *Sending.__annotations__])
        advice = f"did you mean {close[0]!r}?" if close else f"there are {others}"
        raise TypeError(f"unknown option {name!r} of a stream's client: {advice}")
    wrong, right = ("close", "aclose") if asynchronous else ("aclose", "close")
    if hasattr(client, wrong) and not hasattr(client, right):
        raise TypeError(
            f"client={client!r} is for calls that block: give an httpx.AsyncClient, or use the "
            "function whose name ends with _sync"
            if asynchronous
            else f"client={client!r} is for calls that are awaited: give an httpx.Client, or "
            "use the function whose name has no _sync"
        )
    key = sending.get("idempotency_key")
    if key is not None and not (isinstance(key, str) and key.isascii() and key.isprintable()):
        raise ValueError(f"idempotency_key={key!r}: give a printable ASCII text")
    patience = sending.get("give_up_after", GIVE_UP_AFTER)
    if isinstance(patience, bool) or not isinstance(patience, int | float):
        raise TypeError(f"give_up_after={patience!r}: give seconds; math.inf is never")


def build(
    client: AsyncClient | SyncClient, url: str, sending: Sending, content: bytes | str | None
) -> httpx.Request:
    """The request as the client would send it. Its body is still to be read."""
    given: dict[str, Any] = {
        name: sending.get(name) for name in ("headers", "params", "json", "data", "files")
    }
    request: httpx.Request = client.build_request(
        sending.get("method", "GET"), url, content=content, **given
    )
    return request


def whole(content: Any) -> bytes | str | None:
    """`content` in one piece; an iterable is read to its end."""
    if content is None or isinstance(content, bytes | str):
        return content
    if isinstance(content, bytearray | memoryview):
        return bytes(content)
    if isinstance(content, Iterable):
        return b"".join(content)
    raise TypeError(f"content is {type(content).__name__}; give bytes, a text, or an iterable")


class Call:
    """Stands between a driver and its conversation. `request` has been built and read."""

    def __init__(
        self, request: httpx.Request, sending: Sending, client: AsyncClient | SyncClient
    ) -> None:
        self._template = request
        self._pacing = sending.get("pacing", Pacing())
        self._client = client
        self._timeout: dict[str, float | None] = {}  # of the request that was sent last
        self._response: httpx.Response | None = None
        self._response_class = httpx.Response
        _add_headers(request, sending)
        headers = tuple(pair for pair in request.headers.raw if pair[0].lower() not in _FRAMING)
        url = str(request.url)
        first = Asking(request.method, url, headers, request.content, origin(url))
        last_event_id = sending.get("last_event_id")
        if last_event_id is not None and first.method != "GET":
            raise ValueError("last_event_id goes with the URL of a run, which is read with GET")
        self.conversation = Conversation(
            first,
            sending.get("give_up_after", GIVE_UP_AFTER),
            self._pacing,
            last_event_id,
        )

    def next_request(self) -> tuple[httpx.Request, dict[str, Any]]:
        """The request to send now, and options for `send`."""
        asking = self.conversation.asks()
        read = self._read_timeout(self._pacing.answer_within)
        self._timeout = {**self._template.extensions["timeout"], "read": read}
        request = type(self._template)(
            asking.method,
            asking.url,
            headers=list(asking.headers_to_send),
            content=asking.body,
            extensions={**self._template.extensions, "timeout": self._timeout},
        )
        options: dict[str, Any] = {"stream": True, "follow_redirects": False}
        if not asking.is_at_home:
            options["auth"] = None  # or the client would add its own
        return request, options

    def starts(self, response: httpx.Response) -> Reading:
        """What to read of a response whose head has come."""
        self._response_class = type(response)
        reading = self.conversation.starts(response.status_code, response.headers)
        if reading is Reading.STREAM:
            # httpcore looks at it when it begins with the body.
            self._timeout["read"] = self._read_timeout(self._pacing.silence)
        return reading

    def hears(self, data: bytes) -> None:
        """A piece of the stream has come."""
        self.conversation.hears(data)
        ending = self.conversation.ending
        if ending is not None and self._response is None:
            self._response = self._make_response(ending)
            if self.conversation.is_at_home:
                self._client.cookies.extract_cookies(self._response)

    def answers(self, response: httpx.Response) -> None:
        """A response that is no stream has been read."""
        self.conversation.answers(response, response.status_code, response.headers)
        self._response = self.conversation.answer

    @property
    def response(self) -> httpx.Response:
        """The endpoint's response. Raises `StreamError` before the end."""
        if self._response is None:
            raise StreamError("the response is there when the stream has been read to its end")
        return self._response

    def _make_response(self, ending: Ending) -> httpx.Response:
        # `stream` and not `content`, to which httpx would add headers of its own. The request's
        # stream is a plain one of the client's own library since it was read.
        request = self._template
        stream = type(request.stream)(ending.body)  # type: ignore[call-arg]
        response = self._response_class(
            ending.status_code, headers=ending.headers, stream=stream, request=request
        )
        response.read()
        return response

    def _read_timeout(self, ours: float) -> float:
        """The client's own where that is shorter; its library's default is nobody's choice, and
        shorter than the heartbeats."""
        chosen = self._client.timeout
        if chosen.read is None or chosen == type(chosen)(_HTTPX_DEFAULT):
            return ours
        return min(float(chosen.read), ours)


def _add_headers(request: httpx.Request, sending: Sending) -> None:
    headers = request.headers
    accepted = headers.get("accept", "*/*")
    if accepted == "*/*":
        headers["Accept"] = _EVENT_STREAM
    elif _EVENT_STREAM not in accepted:
        headers["Accept"] = f"{_EVENT_STREAM}, {accepted}"
    headers["Durable-Client"] = _client_name()
    key = sending.get("idempotency_key") or headers.get("idempotency-key")
    headers["Idempotency-Key"] = key or secrets.token_urlsafe(24)


@cache
def _client_name() -> str:
    return f"durable-endpoints-python/{version('durable-endpoints')}"
