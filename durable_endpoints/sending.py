"""Sending events: from a request, from elsewhere in the application, from another process."""

from __future__ import annotations

import asyncio
from typing import Any

from durable_endpoints._context import current
from durable_endpoints.door import Door, Outside
from durable_endpoints.engines.base import Engine
from durable_endpoints.engines.select import leave_event, running_engine
from durable_endpoints.engines.stand_in import stand_in
from durable_endpoints.events import new_event
from durable_endpoints.settings import Settings


async def send_event(
    name: str, data: Any = None, *, id: str | None = None, ts: int | None = None
) -> str:
    """Send an event to every run that waits for it, now or later, and return its id.

    `data` is a JSON value. Within retention (24 h by default) an `id` counts once. `ts` is when it
    happened, in UTC epoch milliseconds; the deadlines of waits go by the time of receipt.

    In a process that runs an application with the middleware, the event goes to its engine. In any
    other (a script, a cron job) it is sent to the server that `DURABLE_ENDPOINTS_SERVER_URL` names
    (`DURABLE_ENDPOINTS_EVENT_KEY`, or the signing key, opens it), or without one, left in the inbox
    of the database that `DURABLE_ENDPOINTS_DATABASE` names. Returns when it is on disk.

    Raises `StepValueError` for what cannot be an event, `StorageError` if it cannot be kept.
    """
    event = new_event(name, data, id, ts)
    engine = await engine_here()
    if engine is not None:
        return await engine.send_event(event)
    return await asyncio.to_thread(send_event_blocking, name, data, id=event.id, ts=ts)


def send_event_blocking(
    name: str, data: Any = None, *, id: str | None = None, ts: int | None = None
) -> str:
    """`send_event` from outside the application, for code without an event loop."""
    event = new_event(name, data, id, ts)
    if (substitute := stand_in()) is not None:
        asyncio.run(substitute.send_event(event))
    else:
        leave_event(Settings.load({}), event)
    return event.id


async def engine_here() -> Engine | None:
    """The engine of this request, or else the one of this process."""
    if (place := current.place) is not None:
        engine: Engine = place.engine
        if not engine.is_running and isinstance(place, Outside | Door):
            return await place.application.started_engine()  # no lifespan has, and no run yet
        return engine
    if (substitute := stand_in()) is not None:
        return substitute
    return running_engine(Settings.load({}))
