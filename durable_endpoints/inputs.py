"""The run input: path parameters, query, and JSON object or form body, later ones winning."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import File, create_form_parser, parse_options_header

from durable_endpoints.protocol.messages import StoredRequest
from durable_endpoints.requests import header


def run_input(request: StoredRequest, path_params: dict[str, Any]) -> dict[str, Any]:
    """Put the parts together. A body that cannot be parsed, and uploaded files, are no part."""
    inputs = {
        name: value if isinstance(value, str | int | float) else str(value)
        for name, value in path_params.items()  # UUIDs, and what other convertors make
    }
    query = request.query_string.decode("latin-1")
    inputs.update(parse_qsl(query, keep_blank_values=True))
    inputs.update(_body_input(request))
    return inputs


def _body_input(request: StoredRequest) -> dict[str, Any]:
    kind = content_kind(request)
    if kind == "application/x-www-form-urlencoded":
        body = request.body.decode("latin-1")
        return dict(parse_qsl(body, keep_blank_values=True))
    if kind == "multipart/form-data":
        parts = multipart_parts(request) or []
        return {name: data.decode("utf-8", "replace") for name, file, data in parts if not file}
    if kind == "application/json" or kind.endswith("+json"):
        try:
            value = orjson.loads(request.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}
    return {}


def content_kind(request: StoredRequest) -> str:
    """The body's media type, without parameters, in lower case."""
    return (header(request.headers, b"content-type") or "").partition(";")[0].strip().lower()


def multipart_parts(request: StoredRequest) -> list[tuple[str, str, bytes]] | None:
    """The parts of a multipart form as (field name, file name or "", content); None if it is
    malformed."""
    content_type = header(request.headers, b"content-type") or ""
    if parse_options_header(content_type)[0] != b"multipart/form-data":
        return None
    parts: list[tuple[str, str, bytes]] = []

    def on_field(field: Any) -> None:
        name = (field.field_name or b"").decode("utf-8", "replace")
        parts.append((name, "", field.value or b""))

    def on_file(file: File) -> None:
        name = (file.field_name or b"").decode("utf-8", "replace")
        file.file_object.seek(0)
        file_name = (file.file_name or b"").decode("utf-8", "replace")
        parts.append((name, file_name or "file", file.file_object.read()))

    try:
        parser = create_form_parser({"Content-Type": content_type.encode()}, on_field, on_file)
        parser.write(request.body)
        parser.finalize()
    except (FormParserError, ValueError):
        return None
    return parts
