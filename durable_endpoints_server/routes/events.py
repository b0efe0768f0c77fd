"""Events: `/e/{key}` takes them in, `/v1/events` tells of them (Inngest event and REST APIs)."""

from __future__ import annotations

from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from durable_endpoints_server.engine.model import Event
from durable_endpoints_server.ingestion import read_events, read_seed
from durable_endpoints_server.inngest import loose_json
from durable_endpoints_server.inngest.apps import is_called_back
from durable_endpoints_server.inngest.trigger import Trigger
from durable_endpoints_server.routes.answers import ApiError, as_json, authorise, data
from durable_endpoints_server.routes.bodies import read_body
from durable_endpoints_server.routes.cross_origin import OPEN, preflight
from durable_endpoints_server.routes.reading import (
    ACCOUNT_ID,
    ENVIRONMENT_ID,
    instant_of,
    is_ulid,
    number_of,
    time_of,
)
from durable_endpoints_server.routes.reads import told_of
from durable_endpoints_server.server import Server
from durable_endpoints_server.store.base import Entry

MAX_REQUEST: Final = 16 * 1024 * 1024
"""Bytes of one request with events."""
_LIMIT: Final = 20
_MOST: Final = 100
_END: Final = (2**62, "")


def routes(server: Server) -> list[BaseRoute]:
    host = server.host

    async def receive(request: Request) -> Response:
        if request.method == "OPTIONS":
            return preflight(request, "POST")
        key = request.path_params["key"]
        if not (server.keys.allows_events(key) or server.keys.allows(request)):
            raise ApiError(401, "This server knows no such event key.", "unauthorized", OPEN)
        now = host.clock.now()
        try:
            body = await read_body(request, MAX_REQUEST)
            seed = read_seed(request.headers.get("x-inngest-event-id-seed"), now)
            events = read_events(body, request.headers.get("content-type", ""), seed, now)
        except ValueError as error:
            raise ApiError(400, f"No event was received: {error}.", "invalid_event", OPEN) from None
        known = await host.events.receive_all(events)
        first: dict[str, str] = {}
        for event in events:
            internal_id = known.get(event.id, event.internal_id) or event.id
            first.setdefault(event.id, internal_id)
        return as_json({"ids": [first[event.id] for event in events], "status": 200}, 200, OPEN)

    async def read_all(request: Request) -> Response:
        authorise(server, request)
        query = request.query_params
        limit = number_of(query, "limit", _LIMIT, _MOST)
        since = instant_of(query, "received_after")
        until = instant_of(query, "received_before")
        before = _END if until is None else (until, "")
        if cursor := query.get("cursor"):
            last = await host.store.event(cursor)
            if last is None:
                raise ApiError(
                    400, f"cursor={cursor!r} is no event that is kept.", "invalid_cursor"
                )
            before = min(before, (last.received_at, last.id))
        # "After" excludes the instant itself.
        since = 0 if since is None else since + 1
        name = query.get("name")
        return data(
            [_told(event) for event in await host.store.list_events(name, since, before, limit)]
        )

    async def event_or_run(request: Request) -> Event | Entry:
        """The event with the id in the path, or the run that began with that event: a request of
        another SDK, whose id is the run's."""
        authorise(server, request)
        event_id = request.path_params["event_id"]
        if (event := await host.store.event(event_id)) is not None:
            return event
        entry = await host.store.entry(event_id) if is_ulid(event_id) else None
        if entry is None or not is_called_back(entry.app):
            raise ApiError(404, "No such event is kept.", "not_found")
        return entry

    async def read(request: Request) -> Response:
        found = await event_or_run(request)
        return data(_told(found)) if isinstance(found, Event) else _first_event(found)

    async def runs(request: Request) -> Response:
        found = await event_or_run(request)
        # Any other event resumes runs, and begins none.
        return data([] if isinstance(found, Event) else [told_of(found)])

    return [
        Route("/e/{key}", receive, methods=["POST", "OPTIONS"]),
        Route("/v1/events", read_all),
        Route("/v1/events/{event_id}", read),
        Route("/v1/events/{event_id}/runs", runs),
    ]


def _first_event(entry: Entry) -> Response:
    """The request that began a run, unless it is kept no more."""
    if entry.request is None:
        raise ApiError(404, "The request that began this run is not kept.", "not_found")
    event = Trigger.unpack(entry.request).event
    form = {
        "internal_id": entry.run.id,
        "account_id": ACCOUNT_ID,
        "environment_id": ENVIRONMENT_ID,
        "source": "",
        "received_at": time_of(entry.run.began_at),
        **event,
    }
    return Response(loose_json.write({"data": form}), media_type="application/json")


def _told(event: Event) -> dict[str, Any]:
    extra = orjson.loads(event.extra)
    return {
        "internal_id": event.internal_id or event.id,
        "account_id": ACCOUNT_ID,
        "environment_id": ENVIRONMENT_ID,
        "source": "",
        "received_at": time_of(event.received_at),
        "id": event.id,
        "name": event.name,
        "data": orjson.loads(event.data),
        "user": extra.get("user", {}),
        "ts": event.ts,
        "v": extra.get("v"),
    }
