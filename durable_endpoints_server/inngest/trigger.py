"""The event that began a run of another SDK: its HTTP request, as the SDK has described it
(Inngest checkpoint API, "new run"). It is what is stored, and what is sent in again."""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

from durable_endpoints_server.inngest import loose_json
from durable_endpoints_server.inngest.refusals import MalformedError

_METHOD: Final = re.compile(r"[A-Za-z]{1,32}")
_HOST: Final = re.compile(r"[A-Za-z0-9_.-]{1,253}|[0-9A-Fa-f:.]{2,45}")
_PATH_SAFE: Final = "/%:@!$&'()*+,;=-._~"
_QUERY_SAFE: Final = _PATH_SAFE + "?"
_MAX_PATH: Final = 65_536
_PORTS: Final = {"http": 80, "https": 443}


class Trigger(NamedTuple):
    """The original request of a run."""

    event: dict[str, Any]
    """As it came, with an id."""
    is_base64: bool
    """How the event has the body."""

    @property
    def _data(self) -> dict[str, Any]:
        data: dict[str, Any] = self.event["data"]
        return data

    @property
    def origin(self) -> str:
        """Where the application is: `https://host`, with the port where it is not the scheme's."""
        return origin_of(self._data.get("domain"))

    @property
    def method(self) -> str:
        return str(self._data["method"]).upper()

    @property
    def path(self) -> str:
        """The path of the URL, percent-encoded."""
        return quote(str(self._data["path"]), _PATH_SAFE, errors="replace")

    @property
    def target(self) -> str:
        """The path with the query."""
        query = str(self._data.get("query_params") or "").removeprefix("?")
        return f"{self.path}?{quote(query, _QUERY_SAFE, errors='replace')}" if query else self.path

    @property
    def content_type(self) -> str:
        """Empty where there was none, or none that a header can have."""
        given = str(self._data.get("content_type") or "")
        return given if given.isascii() and given.isprintable() else ""

    @property
    def body(self) -> bytes:
        text = str(self._data.get("body") or "")
        if self.is_base64:
            return b64decode(text)
        return text.encode("utf-8", "replace")

    @property
    def function_id(self) -> str:
        """What the endpoint is called: its own id, or method and path."""
        own = self._data.get("fn")
        return loose_json.printable(str(own), 512) if own else f"{self.method} {self.path}"

    def pack(self) -> bytes:
        """The trigger as it is stored."""
        return loose_json.write({"event": self.event, "base64": self.is_base64})

    @classmethod
    def unpack(cls, packed: bytes) -> Trigger:
        """What `pack` gave."""
        stored = loose_json.read(packed)
        return cls(stored["event"], stored["base64"])


def read_trigger(value: Any, event_id: str, sdk: str) -> Trigger:
    """The trigger of a new run, of which `value` is the event. It gets `event_id` where it has no
    id. `sdk` is the SDK's name and version (`x-inngest-sdk`).

    Raises `MalformedError`.
    """
    if not isinstance(value, dict) or not isinstance(value.get("data"), dict):
        raise MalformedError("event: it is not an event with the data of an HTTP request")
    data = value["data"]
    origin_of(data.get("domain"))
    method, path = data.get("method"), data.get("path")
    if not isinstance(method, str) or not _METHOD.fullmatch(method):
        raise MalformedError("event.data.method is no HTTP method")
    if not isinstance(path, str) or not path.startswith("/") or len(path) > _MAX_PATH:
        raise MalformedError("event.data.path is no path of a URL")
    for name in ("content_type", "query_params", "fn", "body", "ip"):
        if not isinstance(data.get(name) or "", str):
            raise MalformedError(f"event.data.{name} is no text")
    event = {**value, "id": value.get("id") or event_id, "name": value.get("name") or ""}
    return Trigger(event, _is_base64(data.get("body") or "", sdk))


def origin_of(domain: Any) -> str:
    """The origin that a URL without a path names, in its usual form. Raises `MalformedError`."""
    problem = MalformedError(
        f"event.data.domain: {domain!r:.300} is no origin; https://host:port is one"
    )
    if not isinstance(domain, str) or not domain.isascii() or not domain.isprintable():
        raise problem
    try:
        parts = urlsplit(domain)
        port = parts.port
    except ValueError:
        raise problem from None
    host = parts.hostname or ""
    is_bare = parts.path in ("", "/") and not parts.query and not parts.fragment
    if parts.scheme not in _PORTS or not is_bare or "@" in domain or not _HOST.fullmatch(host):
        raise problem
    place = f"[{host}]" if ":" in host else host
    is_usual = port is None or port == _PORTS[parts.scheme]
    return f"{parts.scheme}://{place}" if is_usual else f"{parts.scheme}://{place}:{port}"


def _is_base64(body: str, sdk: str) -> bool:
    """Whether a body is meant as base64. Inngest's own server takes nothing else; its JavaScript
    SDK sends plain text all the same."""
    if not body or sdk.startswith("inngest-js"):
        return False
    try:
        b64decode(body, validate=True)
    except (Base64Error, ValueError):
        return False
    return True
