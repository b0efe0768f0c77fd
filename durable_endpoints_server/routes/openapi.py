"""`/openapi.json`: the document of the HTTP API (OpenAPI 3.1), made of `operations.py`."""

from __future__ import annotations

import re
from functools import cache
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from durable_endpoints_server.routes.answers import authorise
from durable_endpoints_server.routes.operations import JSON, OPERATIONS, ULID, Operation
from durable_endpoints_server.server import Server

_PARAMETER = re.compile(r"\{(\w+)\}")
_ERROR = {"$ref": "#/components/schemas/Error"}


def routes(server: Server) -> list[BaseRoute]:
    async def read(request: Request) -> Response:
        authorise(server, request)
        return Response(_packed(server.settings.dev), 200, None, JSON)

    return [Route("/openapi.json", read, methods=["GET"])]


@cache
def _packed(dev: bool) -> bytes:
    return orjson.dumps(document(dev))


def document(dev: bool = False) -> dict[str, Any]:
    """The document. A server for development (`dev`) asks for no key."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        form = _operation(operation)
        form["security"] = [{"signingKey": []}] if operation.access == "key" and not dev else []
        paths.setdefault(operation.path, {})[operation.method.lower()] = form
    return {
        "openapi": "3.1.0",
        "info": {"title": "durable-endpoints server", "version": version("durable-endpoints")},
        "paths": paths,
        "components": {
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["error", "status"],
                    "properties": {
                        "error": {"description": "What happened, and what to do instead."},
                        "data": {},
                        "status": {"description": "The HTTP status, or how the run stands."},
                        "code": {"type": "string"},
                    },
                }
            },
            "securitySchemes": {
                "signingKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A signing key, as it is or hashed. In development none.",
                },
            },
        },
    }


def statuses(operation: Operation) -> list[int]:
    """Every status with which an operation may answer."""
    # A server for development refuses pages of other origins (403).
    found = {*operation.answers, *operation.refuses, 403, 503}
    if operation.access:
        found.add(401)
    if operation.takes:
        found |= {400, 408, 413, 415}
    if operation.query or "{run_id}" in operation.path:
        found.add(400)
    return sorted(found)


def _operation(operation: Operation) -> dict[str, Any]:
    form: dict[str, Any] = {
        "summary": operation.about,
        "parameters": [*_path_parameters(operation), *_query_parameters(operation)],
        "responses": {str(status): _answer(operation, status) for status in statuses(operation)},
    }
    if operation.takes:
        content = {media: {"schema": schema} for media, schema in operation.takes.items()}
        form["requestBody"] = {"required": True, "content": content}
    return form


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": ULID if name == "run_id" and operation.access else {"type": "string"},
        }
        for name in _PARAMETER.findall(operation.path)
    ]


def _query_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {
            "name": query.name,
            "in": "query",
            "description": query.about,
            "required": query.required,
            "schema": query.schema,
        }
        for query in operation.query
    ]


def _answer(operation: Operation, status: int) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if status not in operation.answers:
        answer["content"] = {JSON: {"schema": _ERROR}}
    elif operation.gives:
        answer["content"] = {operation.gives: {"schema": {}}}
    return answer
