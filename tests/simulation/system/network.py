"""The simulated network: HTTP exchanges between clients and applications, and wires between
applications and servers. What travels takes time and keeps its order; any connection may be cut."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from random import Random
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Message

from durable_endpoints.engines.remote.dialing import LostConnectionError
from durable_endpoints_server.remote.transport import TransportClosedError
from tests.simulation.system.handlers import PLANNED
from tests.simulation.system.loop import Process


class BrokenError(Exception):
    """A client's connection was refused, or has ended before its time."""


class Head(NamedTuple):
    """The beginning of a response."""

    status: int
    headers: dict[str, str]


class _Way:
    """One direction of a connection."""

    def __init__(self, random: Random, to: Process) -> None:
        self._random = random
        self._to = to
        self._free_at = 0.0

    def carry(self, deliver: Any, *args: Any) -> None:
        """Let something arrive at the other end, after whatever was sent before."""
        now = self._to.loop.time()
        self._free_at = max(self._free_at, now + delay(self._random))
        self._to.call_later(self._free_at - now, deliver, *args)


class Exchange:
    """One HTTP request of a client and its response."""

    def __init__(self, network: Network, client: Process, server: Process, app: ASGIApp) -> None:
        self.server = server
        self._network = network
        self._app = app
        self._there = _Way(network.random, server)
        self._back = _Way(network.random, client)
        self._arrived: asyncio.Queue[Message | BrokenError] = asyncio.Queue()
        self._left = asyncio.Event()
        self._body: bytes | None = None
        self.is_cut = False
        self.is_complete = False
        """Whether the application has sent all."""

    # The client's end

    async def ask(
        self, method: str, target: str, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> Head:
        """Send the request. Returns the head of the response. Raises `BrokenError`."""
        self._there.carry(self._begin, method, target, headers, body)
        start = await self._next()
        pairs = (
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]
        )
        return Head(start["status"], dict(pairs))

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises `BrokenError` if it is cut off."""
        while True:
            message = await self._next()
            if data := message.get("body", b""):
                yield data
            if not message.get("more_body", False):
                self._network.exchanges.pop(self, None)
                return

    async def _next(self) -> Message:
        message = await self._arrived.get()
        if isinstance(message, BrokenError):
            raise message
        return message

    def cut(self) -> None:
        """Break the connection: both ends find out, sooner or later."""
        if not self.is_cut:
            self.is_cut = True
            self._network.exchanges.pop(self, None)
            self._back.carry(self._arrived.put_nowait, BrokenError("the connection broke"))
            self._there.carry(self._left.set)

    # The application's end

    def _begin(
        self, method: str, target: str, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> None:
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": headers,
            "client": ("10.0.0.1", 50_000),
            "server": ("app", 80),
            "state": {},
            "extensions": {},
        }
        self._body = body
        task = self.server.spawn(self._serve(scope))
        self._network.requests.setdefault(self.server, []).append(task)

    async def _serve(self, scope: dict[str, Any]) -> None:
        try:
            await self._app(scope, self._receive, self._send)
        except PLANNED:
            pass
        except Exception as error:
            self._network.noted.append(f"{scope['path']} raised {error!r}")
        finally:
            if not self.is_complete:
                self.cut()

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_complete = True
        if not self.is_cut:
            self._back.carry(self._arrive, message)

    def _arrive(self, message: Message) -> None:
        if not self.is_cut:
            self._arrived.put_nowait(message)


class Network:
    """All open connections."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.exchanges: dict[Exchange, None] = {}
        self.requests: dict[Process, list[asyncio.Task[None]]] = {}
        """What applications work on, or have worked on."""
        self.wires: list[Wire] = []
        self.noted: list[str] = []
        """What applications raised to their HTTP servers."""

    def exchange(self, client: Process, server: Process, app: ASGIApp) -> Exchange:
        exchange = Exchange(self, client, server, app)
        self.exchanges[exchange] = None
        return exchange

    def wire(self, app: Process, server: Process) -> Wire:
        wire = Wire(self.random, app, server)
        self.wires = [open_one for open_one in self.wires if not open_one.is_cut]
        self.wires.append(wire)
        return wire

    def is_connected(self, process: Process) -> bool:
        """Whether a client waits for something of an application, or that works on a request."""
        if any(exchange.server is process for exchange in self.exchanges):
            return True
        return any(not task.done() for task in self.requests.get(process, ()))

    def died(self, process: Process) -> None:
        """Break the connections of a process."""
        for exchange in list(self.exchanges):
            if exchange.server is process:
                exchange.cut()
        for wire in self.wires:
            if process in (wire.near.process, wire.far.process):
                wire.cut()


class End:
    """One end of a wire, as the SDK and the server see it."""

    def __init__(self, random: Random, process: Process) -> None:
        self.process = process
        self.peer: End
        self.wire: Wire
        self.closed: TransportClosedError | None = None
        self.way = _Way(random, process)
        """To this end."""
        self._inbox: deque[str] = deque()
        self._news = asyncio.Event()

    async def put(self, message: str) -> None:
        if self.closed is not None:
            raise self.closed
        self.peer.way.carry(self.peer._arrive, message)

    async def take(self) -> str:
        while not self._inbox:
            if self.closed is not None:
                raise self.closed
            self._news.clear()
            await self._news.wait()
        return self._inbox.popleft()

    def _arrive(self, message: str) -> None:
        if not self.wire.is_cut:
            self._inbox.append(message)
            self._news.set()

    async def finish(self, code: int, reason: str) -> None:
        if self.closed is None:
            self.end(TransportClosedError(code, reason))
            self.peer.way.carry(self.peer.end, TransportClosedError(code, reason))

    def end(self, why: TransportClosedError) -> None:
        self.closed = self.closed or why
        self._news.set()


class Wire:
    """One connection of an application to a server."""

    def __init__(self, random: Random, app: Process, server: Process) -> None:
        self._random = random
        self.near, self.far = End(random, app), End(random, server)
        self.near.peer, self.far.peer = self.far, self.near
        self.near.wire = self.far.wire = self
        self.is_cut = False

    def cut(self, silence: float = 0.0) -> None:
        """Lose what is on the way. Each end finds out after some time, up to `silence` seconds."""
        if not self.is_cut:
            self.is_cut = True
            for end in (self.near, self.far):
                later = delay(self._random) + silence * self._random.random()
                why = TransportClosedError(1006, "the connection was cut")
                end.process.call_later(later, end.end, why)


class Line:
    """The near end, as a `Connection` of the SDK."""

    def __init__(self, end: End) -> None:
        self._end = end

    async def send(self, message: bytes) -> None:
        try:
            await self._end.put(message.decode())
        except TransportClosedError as error:
            raise LostConnectionError(str(error)) from None

    async def receive(self) -> str:
        try:
            return await self._end.take()
        except TransportClosedError as error:
            raise LostConnectionError(str(error)) from None

    async def close(self) -> None:
        await self._end.finish(1000, "")


class Socket:
    """The far end, as a `Transport` of the server."""

    def __init__(self, end: End) -> None:
        self._end = end

    async def send(self, message: str) -> None:
        await self._end.put(message)

    async def receive(self) -> str:
        return await self._end.take()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self._end.finish(code, reason)


def delay(random: Random) -> float:
    """Seconds that a message is on its way: most often few, sometimes many."""
    kind = random.random()
    if kind < 0.5:
        return 0.0005 * random.random()
    if kind < 0.98:
        return 0.01 * random.random()
    return 1.0 * random.random()
