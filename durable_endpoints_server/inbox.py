"""The inbox: what other processes (a command line, a script) want of the one that owns the file."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import orjson

from durable_endpoints.protocol.errors import EngineError
from durable_endpoints.protocol.events import check_event, check_signal
from durable_endpoints.protocol.ops import NewEvent
from durable_endpoints_server.engine.facts import Change, InboxTaken
from durable_endpoints_server.store.base import InboxMessage

if TYPE_CHECKING:
    from durable_endpoints_server.host import Host

logger = logging.getLogger("durable_endpoints")

_PAGE = 100
_PAUSE = 0.01


class Inbox:
    """Carries messages out, in order, and takes them from the inbox when they are done."""

    def __init__(self, host: Host, interval: float) -> None:
        self._host = host
        self._interval = interval
        self._is_reading = False
        host.events.read_inbox = self.read

    async def run(self) -> None:
        """Look every `interval` seconds until cancelled."""
        self._is_reading = False
        trouble = ""
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.read()
            except EngineError as error:
                if str(error) != trouble:  # told once, not several times a second
                    logger.warning("the inbox could not be read: %s", error)
                trouble = str(error)
            else:
                trouble = ""

    async def read(self) -> None:
        """Carry out everything that is there."""
        while self._is_reading:  # noqa: ASYNC110 (waited for on any event loop)
            await asyncio.sleep(_PAUSE)
        self._is_reading = True
        try:
            while messages := await self._host.store.inbox(_PAGE):
                for message in messages:
                    await self._take(message)
        finally:
            self._is_reading = False

    async def _take(self, message: InboxMessage) -> None:
        try:
            await self._carry_out(message)
        except (ValueError, KeyError, TypeError) as error:
            logger.error("message %d of the inbox makes no sense: %s", message.id, error)
        taken = Change((InboxTaken(message.id),))
        await self._host.store.submit(taken).wait()

    async def _carry_out(self, message: InboxMessage) -> None:
        data = orjson.loads(message.data)
        if message.kind == "event":
            event = NewEvent(data["id"], data["name"], orjson.dumps(data["data"]), data.get("ts"))
            if event.id is None:
                raise ValueError("an event in the inbox needs an id")
            check_event(event.name, event.id, event.ts, event.data)
            received_at = self._host.clock.of_machine(message.at)
            await self._host.events.publish(event, received_at=received_at)
        elif message.kind == "signal":
            await self._give_signal(data["name"], orjson.dumps(data["data"]))
        elif message.kind == "cancel":
            await self._host.cancel(data["run_id"], data.get("reason", "cancelled"))
        elif message.kind == "retry":
            await self._host.retry(data["run_id"])
        else:
            raise ValueError(f"unknown kind {message.kind!r}")

    async def _give_signal(self, name: str, data: bytes) -> None:
        check_signal(name, data)
        if not await self._host.signals.send(name, data):
            logger.warning("signal %s was left in the inbox, and no run waits for it", name)
