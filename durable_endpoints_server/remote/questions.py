"""Questions of a process, about runs, events and signals."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from durable_endpoints.protocol import wire
from durable_endpoints.protocol.errors import (
    EngineClosedError,
    EngineError,
    LimitError,
    LostRunError,
)
from durable_endpoints.protocol.wire import WireError
from durable_endpoints_server.engine.facts import RequestSeen
from durable_endpoints_server.store.base import NO_RECORDS

if TYPE_CHECKING:
    from durable_endpoints_server.remote.process import RemoteProcess

Answer = Callable[["RemoteProcess", Mapping[str, Any]], Awaitable[Any]]


async def answer(process: RemoteProcess, what: str, about: Mapping[str, Any]) -> Any:
    """The answer to a question. Raises `WireError` for one that nobody can understand, and what
    the engine raises."""
    find = _ANSWERS.get(what)
    if find is None:
        raise WireError(f"there is no question {what!r}")
    return await find(process, about)


def code_of(error: EngineError | LimitError | WireError) -> str:
    """The word for an error, as whoever asked is told."""
    match error:
        case WireError():
            return "bad_request"
        case LimitError():
            return "limit"
        case LostRunError():
            return "lost"
        case EngineClosedError():
            return "closed"
        case _:
            return "storage"


async def _key_holder(process: RemoteProcess, about: Mapping[str, Any]) -> Any:
    key = process.hub.key_of(process.app, wire.text(about.get("key")))
    holder = await process.hub.host.store.key_holder(key)
    return None if holder is None else list(holder)


async def _outcome(process: RemoteProcess, about: Mapping[str, Any]) -> Any:
    timeout = wire.whole(about.get("timeout", 0))
    ended = await process.hub.host.waiters.wait(_run(about), timeout)
    if ended is None:
        return None
    return {
        "run": ended.run.id,
        "status": ended.run.status.label,
        "reason": ended.run.reason,
        "response": None if ended.response is None else wire.pack_bytes(ended.response),
        "omitted": ended.omitted,
        "until_delivered": ended.until_delivered,
        "error": None if ended.error is None else ended.error.decode(),
        "method": ended.method,
        "path": ended.path,
    }


async def _stream_tail(process: RemoteProcess, about: Mapping[str, Any]) -> Any:
    page = await process.hub.host.store.stream_page(_run(about), NO_RECORDS, 1)
    return 0 if page is None else page.tail


async def _until_idle(process: RemoteProcess, about: Mapping[str, Any]) -> Any:
    host, run_id = process.hub.host, _run(about)
    await host.until_idle(run_id)
    # If it is the parent that asks, it hears of the end before it hears that it need not wait.
    await host.children.until_told(run_id)


async def _cancel(process: RemoteProcess, about: Mapping[str, Any]) -> Any:
    return await process.hub.host.cancel(_run(about), wire.text(about.get("reason")))


async def _send_event(process: RemoteProcess, about: Mapping[str, Any]) -> Any:
    return await process.hub.host.events.publish(wire.unpack_event(about.get("event")))


async def _send_signal(process: RemoteProcess, about: Mapping[str, Any]) -> Any:
    name, data = wire.text(about.get("name")), wire.json_text(about.get("data"))
    return await process.hub.host.signals.send(name, data)


async def _delivered(process: RemoteProcess, about: Mapping[str, Any]) -> Any:
    process.hub.host.delivered(_run(about))


async def _track(process: RemoteProcess, about: Mapping[str, Any]) -> Any:
    host, run = process.hub.host, about.get("run")
    host.track(
        RequestSeen(
            host.clock.now(),
            wire.text(about.get("method")),
            wire.text(about.get("route")),
            wire.whole(about.get("status")),
            wire.whole(about.get("elapsed")),
            None if run is None else wire.text(run),
        )
    )


async def _holds(process: RemoteProcess, about: Mapping[str, Any]) -> Any:
    """Whether the process still has a run, in an execution with this generation."""
    run_id, generation = _run(about), wire.whole(about.get("generation"))
    await process.heard_out(run_id)
    session = process.sessions.get(run_id)
    return session is not None and session.live.generation == generation


def _run(about: Mapping[str, Any]) -> str:
    return wire.text(about.get("run"))


_ANSWERS: Final[dict[str, Answer]] = {
    "key_holder": _key_holder,
    "outcome": _outcome,
    "stream_tail": _stream_tail,
    "until_idle": _until_idle,
    "cancel": _cancel,
    "send_event": _send_event,
    "send_signal": _send_signal,
    "delivered": _delivered,
    "track": _track,
    "holds": _holds,
}
