"""One request as plain data, and what becomes of it: redirected, or sent on to the run. Pure.

Credentials may sit in any header, so on the way to another origin than the caller's only headers
known to hold none go along.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import parse_qs, urldefrag, urljoin, urlsplit

from durable_endpoints.client.errors import StreamError

Headers = tuple[tuple[bytes, bytes], ...]

_SAFE = {
    b"accept",
    b"accept-encoding",
    b"accept-language",
    b"content-encoding",
    b"content-language",
    b"content-type",
    b"durable-client",
    b"idempotency-key",
    b"last-event-id",
    b"user-agent",
}
_OF_THE_BODY = {b"content-encoding", b"content-language", b"content-location", b"content-type"}
_OF_THE_FIRST_REQUEST = {b"idempotency-key", b"last-event-id"}
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Asking:
    """What to ask, and where."""

    method: str
    url: str
    """Absolute."""
    headers: Headers
    """All that the caller gave, without those that frame the body."""
    body: bytes
    home: str
    """The origin that the caller named."""

    @property
    def is_at_home(self) -> bool:
        """Whether the caller's credentials may go along."""
        return origin(self.url) == self.home

    @property
    def headers_to_send(self) -> Headers:
        """`headers` without what is not for this origin."""
        if self.is_at_home:
            return self.headers
        return tuple(pair for pair in self.headers if pair[0].lower() in _SAFE)

    @property
    def is_for_run(self) -> bool:
        """Whether it asks for a run's outcome: `/wait?runId=…&token=…`, under whatever path."""
        return (
            self.method == "GET" and {"runId", "token"} <= parse_qs(urlsplit(self.url).query).keys()
        )

    def redirected(self, status: int, location: str) -> Asking:
        """What to ask after a redirect (RFC 9110 §15.4; 301 and 302 as browsers do it)."""
        url = resolve(self.url, location)
        is_rewritten = self.method != "HEAD" and (
            status == 303
            or (status == 302 and self.method != "GET")
            or (status == 301 and self.method == "POST")
        )
        if not is_rewritten:
            return replace(self, url=url)
        # The key belongs to the request that was redirected: with another one it is a conflict.
        headers = self._headers_without(_OF_THE_BODY | {b"idempotency-key"})
        return replace(self, method="GET", url=url, headers=headers, body=b"")

    def for_run(self, url: str, last_event_id: str) -> Asking:
        """What to ask to read on behind `last_event_id`."""
        asking = replace(
            self,
            method="GET",
            url=url,
            headers=self._headers_without(_OF_THE_BODY | _OF_THE_FIRST_REQUEST),
            body=b"",
        )
        return asking.after(last_event_id)

    def after(self, last_event_id: str) -> Asking:
        """The same, for what comes behind `last_event_id` only."""
        others = self._headers_without({b"last-event-id"})
        return replace(self, headers=(*others, (b"Last-Event-ID", last_event_id.encode())))

    def _headers_without(self, names: set[bytes]) -> Headers:
        return tuple(pair for pair in self.headers if pair[0].lower() not in names)


def origin(url: str) -> str:
    """Scheme, host and port of an absolute URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or _DEFAULT_PORTS.get(parts.scheme)}"


def resolve(base: str, url: str) -> str:
    """`url` as it is meant in a response from `base`. Raises `StreamError` if it is none."""
    try:
        whole = urldefrag(urljoin(base, url)).url
        origin(whole)
    except ValueError as error:
        raise StreamError(f"the server named {url!r}, which is no URL: {error}") from None
    return whole
