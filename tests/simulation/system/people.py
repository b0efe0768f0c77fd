"""Who is outside: clients that do not give up, senders of events and signals, who cancels."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import orjson

from durable_endpoints.client.asking import Asking
from durable_endpoints.client.conversation import Conversation, Reading
from durable_endpoints.client.events import Metadata, StreamEvent
from durable_endpoints.client.pacing import Pacing
from durable_endpoints.errors import EngineError
from durable_endpoints.protocol.ops import NewEvent
from tests.simulation.programs import Cancel, Event, Given, Request
from tests.simulation.system.handlers import path_of
from tests.simulation.system.loop import Process
from tests.simulation.system.network import BrokenError, Exchange, Head

T = TypeVar("T")

_HOME = "http://app"
_FOR_EVER = 1e9
_AT_MOST = 600.0
"""Seconds for which a client stays at one request, and in which it hears something of an app."""
_SEND_WITHIN = 30.0


class Answer(NamedTuple):
    """What a client got in the end."""

    status: int
    body: bytes


class Surroundings(Protocol):
    """The world as people see it."""

    def connect(self, client: Process) -> Exchange:
        """A connection to some application. Raises `BrokenError` if none takes it."""
        ...

    async def accepted(self, label: str, delay: int) -> str:
        """The id of the run with this label, so many milliseconds after it came to the disk. Maybe
        never returns."""
        ...

    async def ended(self, run_id: str) -> None:
        """Return once the run has ended."""
        ...

    def has_ended(self, run_id: str) -> bool: ...

    def event_kept(self, event_id: str) -> None:
        """The sender of an event was told that it is kept."""
        ...

    def signal_taken(self, run_id: str, number: int) -> None:
        """The sender of a signal, which says a number, was told that this run has it."""
        ...

    def cancelled(self, run_id: str) -> None:
        """Somebody was told that the run is cancelled."""
        ...

    async def ask(self, question: Callable[[Any], Awaitable[T]]) -> T:
        """Ask the engine, by whatever process that has one now. Raises `BrokenError`."""
        ...

    def read(self, run_id: str, event: StreamEvent) -> None:
        """A reader of the run's stream saw this."""
        ...

    def pause(self) -> float: ...


class Client:
    """One client, which asks once, and as often as it must to get the answer of that."""

    def __init__(self, world: Surroundings, process: Process, request: Request) -> None:
        self._world = world
        self._process = process
        self._request = request
        self._key = request.key
        if request.reads_stream and self._key is None:
            self._key = f"made for {request.label}"  # as our clients of streams do
        self._exchange: Exchange | None = None

    async def converse(self) -> Answer | None:
        """The answer; None if it cannot be known: without a key, nothing is asked twice."""
        headers = [(b"accept", b"*/*"), (b"content-length", b"0")]
        if self._key is not None:
            headers.append((b"idempotency-key", self._key.encode()))
        if self._request.reads_stream:
            headers[0] = (b"accept", b"text/event-stream")
            headers.append((b"durable-client", b"simulation/1"))
        url = f"{_HOME}{path_of(self._request.label)}"
        first = Asking("POST", url, tuple(headers), b"", _HOME)
        talk = Conversation(first, _FOR_EVER, Pacing())
        while not talk.is_over:
            await asyncio.sleep(talk.delay)
            asking = talk.asks()
            if self._key is None and asking.is_for_run and not first.is_for_run:
                first = asking  # from here on nothing but this is asked again
                talk = Conversation(first, _FOR_EVER, Pacing())
                asking = talk.asks()
            try:
                async with asyncio.timeout(_AT_MOST):
                    answer = await self._turn(talk, asking)
            except (BrokenError, TimeoutError) as error:
                is_safe = asking.is_for_run or self._key is not None
                if not is_safe:
                    return None
                if isinstance(error, TimeoutError) and talk.run_id is not None:
                    await self._come_back(talk.run_id)
                talk.breaks(error)
                continue
            finally:
                if self._exchange is not None:
                    self._exchange.cut()
            if answer is not None and answer[0].status == 202:
                await self._come_back(answer[0].headers["durable-run-id"])
                talk = Conversation(asking, _FOR_EVER, Pacing())
        if talk.ending is not None:
            return Answer(talk.ending.status_code, talk.ending.body)
        head, body = talk.answer
        if head.status == 503:
            # It may have begun or not. Whoever has a key asks once more, after a while.
            if self._key is None:
                return None
            await asyncio.sleep(self._world.pause())
            return await self.converse()
        return Answer(head.status, body)

    async def _come_back(self, run_id: str) -> None:
        """Go away for a while, from a run that takes long."""
        try:
            async with asyncio.timeout(3_600):
                await self._world.ended(run_id)
        except TimeoutError:
            pass

    async def _turn(self, talk: Conversation, asking: Asking) -> tuple[Head, bytes] | None:
        """One request and what comes of it."""
        self._exchange = exchange = self._world.connect(self._process)
        target = asking.url.removeprefix(_HOME)
        headers = list(asking.headers_to_send)
        head = await exchange.ask(asking.method, target, headers, asking.body)
        reading = talk.starts(head.status, head.headers)
        if reading is Reading.STREAM:
            await self._read(talk, exchange)
            return None
        body = b"".join([piece async for piece in exchange.pieces()])
        if reading is Reading.ANSWER:
            if self._key is None and not asking.is_for_run:
                talk.answer = head, body  # whatever it is: nothing is asked twice
            else:
                talk.answers((head, body), head.status, head.headers)
            return head, body
        return None

    async def _read(self, talk: Conversation, exchange: Exchange) -> None:
        async for piece in exchange.pieces():
            talk.hears(piece)
            while (event := talk.take()) is not None:
                if not isinstance(event, Metadata):
                    assert talk.run_id is not None
                    self._world.read(talk.run_id, event)
            if talk.is_over:
                return
        talk.breaks(None)


async def send_event(world: Surroundings, event: Event) -> None:
    """Send an event until that is acknowledged."""
    await world.accepted(event.after, event.delay)
    data = orjson.dumps({"key": event.key, "number": event.number})
    new = NewEvent(event.id, event.event, data)
    for _ in range(event.copies):
        await _until_done(world, lambda engine: engine.send_event(new))
        world.event_kept(event.id)


async def send_signal(world: Surroundings, given: Given) -> None:
    """Send a signal until somebody has it, or the run has ended."""
    run_id = await world.accepted(given.after, given.delay)
    data = orjson.dumps(given.number)
    pause = 0.05
    while not world.has_ended(run_id):
        if await _until_done(world, lambda engine: engine.send_signal(given.signal, data)):
            world.signal_taken(run_id, given.number)
            return
        await asyncio.sleep(pause)
        pause = min(2 * pause, 600)


async def cancel(world: Surroundings, request: Cancel) -> None:
    """Cancel a run, unless it has ended before."""
    run_id = await world.accepted(request.label, request.delay)
    if await _until_done(world, lambda engine: engine.cancel(run_id, "cancelled")):
        world.cancelled(run_id)


async def _until_done(world: Surroundings, question: Callable[[Any], Awaitable[T]]) -> T:
    while True:
        try:
            async with asyncio.timeout(_SEND_WITHIN):
                return await world.ask(question)
        except (BrokenError, TimeoutError, EngineError):
            await asyncio.sleep(world.pause())
