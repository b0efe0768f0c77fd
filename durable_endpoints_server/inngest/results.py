"""How a run of another SDK has ended: its response, and its error, in the forms they come in.

Inngest's APIResult is `{"status", "headers", "body"}` with a text; some SDKs write
`{"status_code", "headers", "body"}` with base64. Both are read. The body is kept byte for byte,
with whatever encoding the SDK has put around it.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable
from typing import Any, Final

from durable_endpoints.protocol.messages import CONNECTION_HEADERS, Headers, StoredResponse
from durable_endpoints_server.inngest import loose_json

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_OF_SDK: Final = ("x-inngest-", "x-run-id", "date", "server")
"""How the names begin of headers that are not the handler's."""
_MAX_ERROR: Final = 65_536


def response_of(data: Any) -> StoredResponse:
    """The response that the data of a `RunComplete` stands for. What is no APIResult was returned
    as a plain value: it is answered as JSON, as Inngest's server does."""
    if isinstance(data, str):
        try:
            inner = loose_json.read(data.encode("utf-8", "replace"))
        except ValueError:
            inner = None
        if _api_result(inner) is not None:
            data = inner
    if isinstance(data, dict) and _api_result(data) is None and _api_result(data.get("data")):
        data = data["data"]
    result = _api_result(data)
    if result is not None:
        return result
    return StoredResponse(200, _JSON, loose_json.write({"data": data}))


_JSON: Final[Headers] = [(b"content-type", b"application/json")]


def own_headers(headers: Iterable[tuple[str, str]]) -> Headers:
    """The headers of a reply that are the handler's, and not the SDK's or the connection's."""
    values: dict[str, list[str]] = {}
    for name, value in headers:
        if not name.lower().startswith(_OF_SDK):
            values.setdefault(name.lower(), []).append(value)
    return _headers({"headers": values})


def error_of(value: Any) -> bytes:
    """An error object as it is remembered, with a name and a message. Raises nothing."""
    if not isinstance(value, dict):
        message = loose_json.printable(str(value), 16_384) if value else "Unknown error"
        return loose_json.write({"name": "Error", "message": message})
    form = {
        **value,
        "name": str(value.get("name") or "Error"),
        "message": str(value.get("message") or value.get("error") or "Unknown error"),
    }
    text = loose_json.write(form)
    if len(text) <= _MAX_ERROR and loose_json.is_strict(text):
        return text
    kept = {name: loose_json.printable(form[name], 16_384) for name in ("name", "message")}
    stack = form.get("stack")
    stack = loose_json.printable(stack, 16_384) if isinstance(stack, str) else ""
    return loose_json.write({**kept, "stack": stack, "__serialized": True})


def error(name: str, message: str) -> bytes:
    """An error of the server's own."""
    return loose_json.write({"name": name, "message": message, "stack": "", "__serialized": True})


def _api_result(data: Any) -> StoredResponse | None:
    if not isinstance(data, dict):
        return None
    status, body = data.get("status"), data.get("body", "")
    is_base64 = "status_code" in data and "status" not in data
    if is_base64:
        status = data["status_code"]
    if not isinstance(status, int) or isinstance(status, bool) or not isinstance(body, str | None):
        return None
    text = body or ""
    if is_base64:
        try:
            raw = b64decode(text, validate=True)
        except (Base64Error, ValueError):
            return None
    else:
        raw = text.encode("utf-8", "replace")
    return StoredResponse(status if 200 <= status <= 599 else 500, _headers(data), raw)


def _headers(data: dict[str, Any]) -> Headers:
    """The headers that an answer can carry. Some SDKs have a list of values for a name."""
    found = data.get("headers")
    headers: Headers = []
    for name, value in found.items() if isinstance(found, dict) else ():
        if not _TOKEN.fullmatch(name) or name.lower() in CONNECTION_HEADERS:
            continue
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str | int | float) and _is_header_value(str(one)):
                headers.append((name.lower().encode("ascii"), str(one).encode("latin-1")))
    return headers


def _is_header_value(value: str) -> bool:
    return all(letter == "\t" or (" " <= letter <= "\xff" and letter != "\x7f") for letter in value)
