"""`step.fetch`: one HTTP request as a step, whose response is remembered.

What another try may mend (no connection, no answer in time, statuses that say "later") fails the
try; every other response is the step's result. httpx is imported with the first call: a server that
fetches nothing needs no HTTP client.
"""

from __future__ import annotations

import asyncio
import inspect
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from datetime import timedelta
from email.utils import formatdate
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from durable_endpoints.bodies import StepOptions
from durable_endpoints.errors import FetchError, LimitError, NonRetriableError, UsageError
from durable_endpoints.execution import Execution
from durable_endpoints.protocol.durations import Duration, parse_duration
from durable_endpoints.protocol.step_ids import StepId
from durable_endpoints.results import RESPONSES
from durable_endpoints.where import checked

if TYPE_CHECKING:
    import httpx

Headers = Mapping[str, str] | Sequence[tuple[str, str]]

_DEFAULT_TIMEOUT = 30.0
_LATER = (408, 425, 429)
"""Statuses below 500 that ask for another try: timeout, too early, too many requests."""
_WITH_KEY = ("POST", "PATCH")
"""Methods whose repetition may have its effect twice (RFC 9110 §9.2.2)."""
_HOPELESS = {"InvalidURL", "LocalProtocolError", "TooManyRedirects", "UnsupportedProtocol"}
"""Errors of httpx that come again each time, by their names: httpx2 has others of the same."""
_FOR_ANYBODY = {
    "accept",
    "accept-encoding",
    "accept-language",
    "connection",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
    "user-agent",
}
"""Headers that a redirect to another origin keeps: no secret stands in them."""
_LONGEST_WAIT = 366 * 86_400_000
"""Milliseconds: the longest wait that there is."""
_PREVIEW = 300
"""Letters of a body that an error quotes …"""
_QUOTED = 4 * _PREVIEW
"""… and the bytes that they are made of, at the most."""


class Received(NamedTuple):
    """A response that has been read, as `RESPONSES` keeps it."""

    status_code: int
    headers: httpx.Headers
    content: bytes
    request: httpx.Request
    """Where it came from, without what may be secret."""


class Fetch:
    """One request, which is made anew for each try."""

    def __init__(
        self,
        id: str,
        method: str,
        url: httpx.URL | str,
        given: dict[str, Any],
        timeout: Duration | None,
        options: StepOptions,
        client: httpx.AsyncClient | httpx.Client | None,
    ) -> None:
        """`given` is what `build_request` of httpx takes. Raises `UsageError`."""
        self._id, self._method, self._url, self._given = id, method, url, given
        self._client = client
        self.options = StepOptions(options.retries)
        """Those of the step. Its timeout is kept here, where it is told of with the URL."""
        self._timeout = options.timeout or _DEFAULT_TIMEOUT
        if timeout is not None:
            self._timeout = checked(parse_duration, id, timeout) / 1_000
        if not self._timeout:
            raise UsageError(f"step.fetch({id!r}): timeout must be longer than nothing")
        content = given["content"]
        if not isinstance(content, str | bytes | None):
            raise UsageError(
                f"step.fetch({id!r}): content is {type(content).__name__}, which could not be sent "
                "again in another try: give bytes or a text"
            )
        self._key = ""
        self._limit: int | None = None
        self._now: Callable[[], int] = lambda: int(time.time() * 1_000)

    def in_run(self, execution: Execution, step: StepId) -> Fetch:
        """It is made as a step of a run. Returns itself."""
        self._key = f"{execution.info.run_id}-{step.hash}"
        self._limit = execution.engine.max_result
        self._now = execution.engine.now
        return self

    async def send(self) -> Received:
        """One try. Raises `FetchError`, or what is not retried."""
        async with self._async_client() as client:
            request, response = self._request(client), None
            body = _Body(self._limit, _name(request))
            try:
                async with asyncio.timeout(self._timeout):
                    response = await client.send(request, stream=True)
                    try:
                        async for piece in response.aiter_bytes():
                            if body.add(piece, response.status_code):
                                break
                    finally:
                        await response.aclose()
            except LimitError:
                raise
            except Exception as error:
                if response is None or not _is_later(response.status_code):
                    raise self._failure(request, error) from error
            return self._judge(response, request, body.content)

    def send_blocking(self) -> Received:
        """The same in the calling thread."""
        with self._blocking_client() as client:
            request, response = self._request(client), None
            body = _Body(self._limit, _name(request))
            deadline = time.monotonic() + self._timeout
            try:
                response = client.send(request, stream=True)
                try:
                    for piece in response.iter_bytes():
                        if body.add(piece, response.status_code):
                            break
                        if time.monotonic() > deadline:
                            raise TimeoutError
                finally:
                    response.close()
            except LimitError:
                raise
            except Exception as error:
                if response is None or not _is_later(response.status_code):
                    raise self._failure(request, error) from error
            return self._judge(response, request, body.content)

    def _async_client(self) -> AbstractAsyncContextManager[httpx.AsyncClient]:
        import httpx

        given: Any = self._client
        if given is None:
            hooks = {"request": [self._keep_from_others_soon]}
            return httpx.AsyncClient(
                verify=_certificates(), follow_redirects=True, event_hooks=hooks
            )
        if not inspect.iscoroutinefunction(getattr(given, "send", None)):
            raise UsageError(f"step.fetch({self._id!r}): client={given!r}: give httpx.AsyncClient")
        return nullcontext(given)

    def _blocking_client(self) -> AbstractContextManager[httpx.Client]:
        import httpx

        given: Any = self._client
        if given is None:
            hooks = {"request": [self._keep_from_others]}
            return httpx.Client(verify=_certificates(), follow_redirects=True, event_hooks=hooks)
        if not hasattr(given, "send") or inspect.iscoroutinefunction(given.send):
            raise UsageError(f"step.sync.fetch({self._id!r}): client={given!r}: give httpx.Client")
        return nullcontext(given)

    def _keep_from_others(self, request: httpx.Request) -> None:
        """A redirect to another origin gets no header of the user's, nor the key: keys of APIs
        stand in headers of many names. (httpx itself takes `Authorization` and cookies away.)"""
        import httpx

        if not _is_same_party(httpx.URL(self._url), request.url):
            for name in request.headers.keys() - _FOR_ANYBODY:
                del request.headers[name]

    async def _keep_from_others_soon(self, request: httpx.Request) -> None:
        self._keep_from_others(request)

    def _request(self, client: httpx.AsyncClient | httpx.Client) -> httpx.Request:
        try:
            request = client.build_request(
                self._method, self._url, timeout=self._timeout, **self._given
            )
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"step.fetch({self._id!r}): this request cannot be made: {error}"
            ) from error
        except Exception as error:  # httpx.InvalidURL, which is no other error
            raise NonRetriableError(f"{self._method}: {type(error).__name__}: {error}") from error
        if request.url.is_relative_url:
            raise UsageError(
                f"step.fetch({self._id!r}): {str(self._url)!r} is no whole URL: begin it with "
                "https://, or give client=httpx.AsyncClient(base_url=…)"
            )
        if self._key and request.method in _WITH_KEY:
            request.headers.setdefault("Idempotency-Key", self._key)
        return request

    def _failure(self, request: httpx.Request, error: Exception) -> Exception:
        """There is no response: why, and whether to try again."""
        kind = type(error).__name__
        if isinstance(error, TimeoutError) or kind.endswith("Timeout"):
            what = f"no whole answer within {self._timeout:g} s"
            return FetchError(f"{_name(request)}: {what} ({kind})")
        what = f"{_name(request)}: {kind}: {error}".removesuffix(": ")
        return NonRetriableError(what) if kind in _HOPELESS else FetchError(what)

    def _judge(self, response: httpx.Response, request: httpx.Request, body: bytes) -> Received:
        """The response, if it is one for the handler."""
        status = response.status_code
        if _is_later(status):
            said, wait = _preview(body), _retry_after(response.headers, self._now())
            raise FetchError(
                f"{_name(request)} answered {status} {response.reason_phrase}"
                + (f": {said}" if said else ""),
                None if wait is None else timedelta(milliseconds=wait),
            )
        asked = response.request
        kept = type(asked)(asked.method, _without_secrets(asked.url))
        return Received(status, response.headers, body, kept)


def as_response(received: Received) -> httpx.Response:
    """What handlers get of it."""
    response: httpx.Response = RESPONSES.encode(received)[1]
    return response


class _Body:
    """The bytes of a body, up to the most that a step remembers, or that an error quotes."""

    def __init__(self, limit: int | None, what: str) -> None:
        self._limit, self._what = limit, what
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, piece: bytes, status: int) -> bool:
        """Take in a piece of the answer with this status. Whether that is enough of it."""
        self._pieces.append(piece)
        self._size += len(piece)
        if _is_later(status):
            return self._size >= _QUOTED
        if self._limit is not None and self._size > self._limit:
            raise LimitError(
                f"{self._what} answers with more than {self._limit:,} bytes, the most that a step "
                "remembers (max_result): fetch it in a step.run of your own, which stores it "
                "elsewhere and returns a reference or what is needed of it"
            )
        return False

    @property
    def content(self) -> bytes:
        return b"".join(self._pieces)


@cache
def _certificates() -> ssl.SSLContext:
    """One for all clients: to load the certificates takes some 20 ms."""
    import httpx

    return httpx.create_ssl_context()


def _is_later(status: int) -> bool:
    """Whether another try may get a better answer."""
    return status >= 500 or status in _LATER


def _is_same_party(url: httpx.URL, other: httpx.URL) -> bool:
    """Whether both are of one origin, or the other one is the same with TLS."""
    ports = (url.scheme, url.port), (other.scheme, other.port)
    is_upgrade = ports == (("http", None), ("https", None))
    return url.host == other.host and (is_upgrade or ports[0] == ports[1])


def _name(request: httpx.Request) -> str:
    return f"{request.method} {_without_secrets(request.url)}"


def _without_secrets(url: httpx.URL) -> str:
    """A URL without user, password, query and fragment."""
    path = url.raw_path.partition(b"?")[0]
    return f"{url.scheme}://{url.netloc.decode('ascii')}{path.decode('ascii')}"


def _preview(body: bytes) -> str:
    text = " ".join(body[:_QUOTED].decode("utf-8", "replace").split())
    text = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
    return text if len(text) <= _PREVIEW else f"{text[: _PREVIEW - 1]}…"


def _retry_after(headers: httpx.Headers, now: int) -> int | None:
    """The wait that a server asks for, in milliseconds: by `Retry-After` (RFC 9110 §10.2.3), or
    more exactly by `retry-after-ms`, as OpenAI does. None if it does not, or by nonsense."""
    from durable_endpoints.client.pacing import seconds_to_wait

    exact = headers.get("retry-after-ms", "").strip()
    if exact.isascii() and exact.isdigit():
        wait = float(exact)
    else:
        date = headers.get("date") or formatdate(now / 1_000, usegmt=True)
        wait = 1_000 * seconds_to_wait(headers.get("retry-after"), date)
    return int(min(wait, _LONGEST_WAIT)) or None
