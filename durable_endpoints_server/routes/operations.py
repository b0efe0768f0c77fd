"""Every operation of the server's HTTP API, as data: what `openapi.py` makes the document of.

Tests hold it to the routes, and to what they answer to anything at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

Schema = dict[str, Any]

JSON: Final = "application/json"
STREAM: Final = "text/event-stream"
ANYTHING: Final = "*/*"


class Query(NamedTuple):
    """A parameter in the query."""

    name: str
    about: str
    schema: Schema
    required: bool = False


class Operation(NamedTuple):
    """One method of one path."""

    method: str
    path: str
    about: str
    access: str = "key"
    """What opens it: the signing `key`, a `token` in the query, the `event` key in the path, or
    nothing (empty)."""
    answers: tuple[int, ...] = (200,)
    """The statuses of success."""
    gives: str = JSON
    """The media type of these; empty for no content."""
    refuses: tuple[int, ...] = ()
    """Statuses of refusal, besides those that follow from the rest."""
    query: tuple[Query, ...] = ()
    takes: Mapping[str, Schema] = MappingProxyType({})
    """The body, by media type."""


_TEXT: Final[Schema] = {"type": "string"}
_NAME: Final[Schema] = {"type": "string", "pattern": "^[ -~]{1,512}$"}
"""Any printable text, in truth: that is more than a pattern can say."""
ULID: Final[Schema] = {"type": "string", "pattern": "^[0-7][0-9A-HJKMNP-TV-Z]{25}$"}
_INSTANT: Final[Schema] = {
    "oneOf": [
        {"type": "integer", "minimum": 0, "maximum": 253_402_300_799_999},
        {"type": "string", "format": "date-time"},
    ]
}


def _limit(most: int) -> Query:
    return Query(
        "limit", "How many at the most.", {"type": "integer", "minimum": 1, "maximum": most}
    )


_TOKEN: Final = Query("token", "What the run's first checkpoint gave.", _TEXT)
_CHANNEL: Final = Query("channel", "The run's id, or the name of a channel.", _TEXT, required=True)


def _json(schema: Schema) -> dict[str, Schema]:
    return {JSON: schema}


_EVENT: Final[Schema] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": _NAME,
        "data": {"type": ["object", "null"]},
        "id": {**_NAME, "type": ["string", "null"]},
        "ts": {"type": ["integer", "null"], "minimum": 0, "maximum": 253_402_300_799_999},
        "user": {"type": ["object", "null"]},
        "v": {"type": ["string", "null"]},
    },
}
_FORM: Final[Schema] = {"type": "object", "required": ["name"], "properties": {"name": _NAME}}
_EVENTS: Final[Schema] = {"oneOf": [_EVENT, {"type": "array", "items": _EVENT, "maxItems": 5_000}]}
_STEPS: Final[Schema] = {
    "type": ["array", "null"],
    "items": {
        "type": "object",
        "required": ["op", "id"],
        "properties": {
            "op": {"type": "string", "examples": ["StepRun", "StepError", "Sleep"]},
            "id": {"type": "string", "pattern": "^[0-9a-f]{40}$"},
        },
    },
}
_ORIGIN: Final[Schema] = {
    "type": "string",
    "pattern": r"^https?://[^/@\s]+$",
    "examples": ["https://api.example.com"],
}
_REQUEST: Final[Schema] = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "data": {
            "type": "object",
            "required": ["domain", "method", "path"],
            "properties": {
                "domain": _ORIGIN,
                "method": {"type": "string", "pattern": "^[A-Za-z]{1,32}$"},
                "path": {"type": "string", "pattern": "^/", "maxLength": 8_192},
            },
        }
    },
}
"""Of a request as an SDK describes it: what every one has."""
_APP: Final[Schema] = {
    "type": "object",
    "required": ["origin"],
    "properties": {"origin": _ORIGIN},
}
_QUERY: Final[Schema] = {
    "type": "object",
    "required": ["query", "variables"],
    "properties": {
        "query": {"type": "string", "pattern": r"run\(runID:|runTraceSpanOutputByID\("},
        "variables": {"type": "object", "minProperties": 1, "additionalProperties": _TEXT},
    },
}
_TOPIC: Final[Schema] = {
    "type": "object",
    "required": ["channel", "name"],
    "properties": {"channel": _TEXT, "name": {"type": "string", "minLength": 1}},
}


def _checkpoints(prefix: str) -> tuple[Operation, ...]:
    run = f"{prefix}/{{run_id}}"
    return (
        Operation(
            "POST",
            prefix,
            "Begin a run, with the steps it has by now. A repeat gets the same answer.",
            refuses=(403, 409),
            takes=_json(
                {
                    "type": "object",
                    "required": ["run_id", "event"],
                    "properties": {"run_id": ULID, "event": _REQUEST, "steps": _STEPS},
                }
            ),
        ),
        Operation(
            "POST",
            f"{run}/steps",
            "Record steps of a run that its application executes.",
            gives="",
            refuses=(404, 409),
            takes=_json({"type": "object", "properties": {"steps": _STEPS}}),
        ),
        Operation(
            "POST",
            f"{run}/async",
            "Record steps within a re-entry.",
            gives="",
            refuses=(404, 409),
            takes=_json(
                {
                    "type": "object",
                    "required": ["generation_id"],
                    "properties": {"generation_id": {"type": "integer"}, "steps": _STEPS},
                }
            ),
        ),
        Operation(
            "GET",
            f"{run}/output",
            "The run's response, with its own status, as soon as there is one.",
            access="token",
            answers=(200, 202, 303),
            gives=ANYTHING,
            refuses=(404, 409, 500, 503, 504, 507),
            query=(_TOKEN, Query("turn", "How often it was asked for before.", _TEXT)),
        ),
        Operation("OPTIONS", f"{run}/output", "For browsers.", "", (204,), ""),
    )


OPERATIONS: Final = (
    Operation("GET", "/health", "The process lives.", ""),
    Operation("GET", "/ready", "The server can work.", ""),
    Operation("GET", "/openapi.json", "This document."),
    Operation("GET", "/dev", "What this server is."),
    # Events and signals
    Operation(
        "POST",
        "/e/{key}",
        "Send one event, or many.",
        access="event",
        takes={JSON: _EVENTS, "application/x-www-form-urlencoded": _FORM},
    ),
    Operation("OPTIONS", "/e/{key}", "For browsers.", "", (204,), ""),
    Operation(
        "GET",
        "/v1/events",
        "Events, the newest first.",
        query=(
            Query("name", "Only events with this name.", _TEXT),
            _limit(100),
            Query("cursor", "The last event that was told.", _TEXT),
            Query("received_after", "RFC 3339, or epoch ms.", _INSTANT),
            Query("received_before", "RFC 3339, or epoch ms.", _INSTANT),
        ),
    ),
    Operation("GET", "/v1/events/{event_id}", "One event.", refuses=(404,)),
    Operation("GET", "/v1/events/{event_id}/runs", "Runs that it began.", refuses=(404,)),
    Operation(
        "POST",
        "/v1/signals",
        "Give a signal to the run that waits for it.",
        refuses=(404,),
        takes=_json(
            {
                "type": "object",
                "required": ["signal"],
                "properties": {"signal": _NAME, "data": {}},
            }
        ),
    ),
    # Runs of Inngest's SDKs
    *_checkpoints("/v1/checkpoint"),
    *_checkpoints("/v1/http/runs"),
    Operation("GET", "/v0/runs/{run_id}/actions", "The run's finished steps.", refuses=(404, 410)),
    Operation("GET", "/v0/runs/{run_id}/batch", "The event that began it.", refuses=(404, 410)),
    Operation("GET", "/v1/runs/{run_id}", "How a run stands.", refuses=(404,)),
    Operation("DELETE", "/v1/runs/{run_id}", "Cancel a run.", gives="", refuses=(404, 409)),
    Operation("GET", "/v1/runs/{run_id}/jobs", "What a run waits for.", refuses=(404,)),
    Operation(
        "POST",
        "/v1/runs/{run_id}/metadata",
        "Not offered.",
        answers=(),
        refuses=(404, 422),
        takes=_json({}),
    ),
    Operation(
        "POST",
        "/v0/gql",
        "Two fixed queries: `run(runID: …)` and `runTraceSpanOutputByID(outputID: …)`.",
        takes=_json(_QUERY),
    ),
    # Streams
    Operation(
        "POST",
        "/v1/realtime/publish/tee",
        "What an application streams while it executes a run: server-sent events.",
        refuses=(404, 409),
        query=(_CHANNEL,),
        takes={"application/octet-stream": {}},
    ),
    Operation(
        "GET",
        "/v1/realtime/sse",
        "A run's stream, from its beginning or after `Last-Event-ID`, or messages of topics.",
        access="token",
        gives=STREAM,
        refuses=(404,),
        query=(_TOKEN,),
    ),
    Operation("OPTIONS", "/v1/realtime/sse", "For browsers.", "", (204,), ""),
    Operation(
        "POST",
        "/v1/realtime/token",
        "A token for a run's stream, or for topics.",
        answers=(201,),
        refuses=(404, 422),
        takes=_json({"type": "array", "items": _TOPIC, "minItems": 1, "maxItems": 100}),
    ),
    Operation(
        "POST",
        "/v1/realtime/publish",
        "Send a message to those who listen to a topic.",
        query=(
            _CHANNEL,
            Query("topic", "Its name. Repeatable.", _TEXT, required=True),
            Query("run_id", "Which run sends it.", _TEXT),
        ),
        takes={JSON: {}, "text/plain": _TEXT},
    ),
    # Our own
    Operation(
        "POST",
        "/v1/durable/heartbeat",
        "A process of our SDK says that it lives.",
        gives="",
        answers=(200, 204),
        refuses=(404,),
        takes=_json({"type": "object", "required": ["process"], "properties": {"process": _TEXT}}),
    ),
    Operation(
        "GET",
        "/v1/durable/connect",
        "Where processes of our SDK connect, by WebSocket: this is for none.",
        answers=(),
        refuses=(426,),
    ),
    Operation("GET", "/v1/durable/apps", "Applications that may be called back."),
    Operation("PUT", "/v1/durable/apps", "Let one be called back.", takes=_json(_APP)),
    Operation("POST", "/v1/durable/apps", "Let one be called back.", takes=_json(_APP)),
    Operation(
        "GET",
        "/v1/durable/runs",
        "The newest runs first.",
        query=(
            Query("status", "Only runs in this state. Repeatable.", _TEXT),
            Query("function", "Only runs of this endpoint.", _TEXT),
            Query("before", "Only runs that began before the one with this id.", _TEXT),
            _limit(10_000),
        ),
    ),
    Operation("GET", "/v1/durable/runs/{run_id}", "One run in full.", refuses=(404,)),
    Operation("GET", "/v1/durable/runs/{run_id}/stream", "Its stream log.", refuses=(404,)),
    Operation("POST", "/v1/durable/runs/{run_id}/retry", "Retry it.", refuses=(404, 409)),
    Operation("POST", "/v1/durable/runs/{run_id}/cancel", "Cancel it.", refuses=(404, 409)),
    Operation("GET", "/v1/durable/requests", "Tracked HTTP requests.", query=(_limit(10_000),)),
)
