"""uvicorn's protocols with bounds: what a WebSocket takes in before somebody receives it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, connect

from durable_endpoints_server.listening import listen, port_of
from durable_endpoints_server.protocols import BoundedHttpProtocol, BoundedWebSocketProtocol

pytestmark = pytest.mark.anyio


class Receiver:
    """An application that receives when it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.received: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        await self.may.wait()
        while (event := await receive())["type"] == "websocket.receive":
            self.received.append(event["bytes"])


@asynccontextmanager
async def connected(app: Receiver) -> AsyncIterator[ClientConnection]:
    config = uvicorn.Config(
        app,
        http=BoundedHttpProtocol,
        ws=BoundedWebSocketProtocol,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
    )
    (socket,) = listen("127.0.0.1", 0)
    port = port_of(socket)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([socket]))
    while not server.started:
        await asyncio.sleep(0.001)
    async with connect(f"ws://127.0.0.1:{port}", compression=None) as client:
        yield client
    server.should_exit = True
    await serving
    socket.close()


async def test_messages_that_nobody_receives_hold_up_who_sends_them() -> None:
    app, count = Receiver(), 300
    async with connected(app) as client:

        async def send_all() -> None:
            for number in range(count):
                await client.send(b"%d" % number + b"x" * 100_000)

        sending = asyncio.create_task(send_all())
        await asyncio.sleep(0.2)
        assert not sending.done()
        app.may.set()
        await sending
    assert [int(message.partition(b"x")[0]) for message in app.received] == list(range(count))


async def test_small_messages_are_received_as_they_come() -> None:
    app = Receiver()
    app.may.set()
    async with connected(app) as client:
        for number in range(1_000):
            await client.send(b"%d" % number)
    assert [int(message) for message in app.received] == list(range(1_000))
