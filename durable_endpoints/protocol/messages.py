"""The stored request and the stored response, and the bytes they are kept as.

Layout: a four-byte big-endian length, that many bytes of JSON (the head), then the raw body, so
that binary bodies are stored as they are. Header names and values are latin-1, as in ASGI.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, Final, NamedTuple

import orjson

Headers = list[tuple[bytes, bytes]]

CONNECTION_HEADERS: Final = frozenset(
    {
        "connection",
        "content-length",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers of one connection, which mean nothing on another one (RFC 9110 §7.6.1)."""


class StoredRequest(NamedTuple):
    """Everything needed to send the original request into the application again."""

    method: str
    scheme: str
    http_version: str
    path: str
    raw_path: bytes
    root_path: str
    query_string: bytes
    headers: Headers
    client: tuple[str, int] | None
    server: tuple[str, int | None] | None
    body: bytes
    path_params: Mapping[str, Any] = {}
    """Parameters of the mounts above the application, which only its parents can tell."""

    def pack(self) -> bytes:
        head: dict[str, Any] = {
            "method": self.method,
            "scheme": self.scheme,
            "http_version": self.http_version,
            "path": self.path.encode("utf-8", "surrogateescape").decode("latin-1"),
            "raw_path": self.raw_path.decode("latin-1"),
            "root_path": self.root_path.encode("utf-8", "surrogateescape").decode("latin-1"),
            "query_string": self.query_string.decode("latin-1"),
            "headers": _headers_to_text(self.headers),
            "client": self.client,
            "server": self.server,
        }
        if self.path_params:
            head["path_params"] = {
                name: value if isinstance(value, int | float) else str(value)
                for name, value in self.path_params.items()
            }
        return _join(head, self.body)

    @classmethod
    def unpack(cls, data: bytes) -> StoredRequest:
        head, body = _split(data)
        client, server = head["client"], head["server"]
        return cls(
            method=head["method"],
            scheme=head["scheme"],
            http_version=head["http_version"],
            path=head["path"].encode("latin-1").decode("utf-8", "surrogateescape"),
            raw_path=head["raw_path"].encode("latin-1"),
            root_path=head["root_path"].encode("latin-1").decode("utf-8", "surrogateescape"),
            query_string=head["query_string"].encode("latin-1"),
            headers=_headers_from_text(head["headers"]),
            client=(client[0], client[1]) if client else None,
            server=(server[0], server[1]) if server else None,
            body=body,
            path_params=head.get("path_params", {}),
        )


class StoredResponse(NamedTuple):
    """A finished response: what the client got, and what every later reader gets."""

    status: int
    headers: Headers
    body: bytes

    def pack(self) -> bytes:
        return _join({"status": self.status, "headers": _headers_to_text(self.headers)}, self.body)

    @classmethod
    def unpack(cls, data: bytes) -> StoredResponse:
        head, body = _split(data)
        return cls(head["status"], _headers_from_text(head["headers"]), body)


def _join(head: dict[str, Any], body: bytes) -> bytes:
    text = orjson.dumps(head)
    return len(text).to_bytes(4, "big") + text + body


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    end = 4 + int.from_bytes(data[:4], "big")
    return orjson.loads(data[4:end]), data[end:]


def _headers_to_text(headers: Headers) -> str | list[list[str]]:
    """Names and values, a line each. Only where one of them has a line break, which no server lets
    pass, are they a list of pairs."""
    lines = b"\n".join(chain.from_iterable(headers)).decode("latin-1")
    if lines.count("\n") == 2 * len(headers) - 1:
        return lines
    return [[name.decode("latin-1"), value.decode("latin-1")] for name, value in headers]


def _headers_from_text(headers: str | list[list[str]]) -> Headers:
    if isinstance(headers, str):
        lines = headers.encode("latin-1").split(b"\n")
        return list(zip(lines[::2], lines[1::2], strict=True))
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
