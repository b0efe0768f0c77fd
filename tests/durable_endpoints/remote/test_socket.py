"""The WebSocket of a process: every message, whole and in order, and then why there are no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from durable_endpoints.engines.remote.dialing import LostConnectionError, _WebSocket
from durable_endpoints.engines.remote.socket import Socket

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Socket, ServerConnection]]:
    """Both ends of a connection."""
    theirs: asyncio.Future[ServerConnection] = asyncio.get_running_loop().create_future()

    async def serving(connection: ServerConnection) -> None:
        theirs.set_result(connection)
        await connection.wait_closed()

    async with serve(serving, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        ours = await connect(f"ws://127.0.0.1:{port}", create_connection=Socket, compression=None)
        assert isinstance(ours, Socket)
        async with ours:
            yield ours, await theirs


async def test_messages_go_both_ways() -> None:
    async with pair() as (ours, theirs):
        await ours.say(b"[1]")
        assert await theirs.recv() == "[1]"
        hearing = asyncio.create_task(ours.hear())
        await asyncio.sleep(0.01)
        await theirs.send("[2]")
        assert await hearing == b"[2]"


async def test_a_message_in_fragments_is_heard_as_one() -> None:
    async with pair() as (ours, theirs):
        await theirs.send(["[1", ",2", "]"])
        await theirs.ping()
        assert await ours.hear() == b"[1,2]"


async def test_who_does_not_listen_holds_up_the_other_end_and_then_hears_everything() -> None:
    async with pair() as (ours, theirs):
        large = "x" * 100_000

        async def send_all() -> None:
            for number in range(200):
                await theirs.send(f"{number} {large}")

        sending = asyncio.create_task(send_all())
        await asyncio.sleep(0.1)
        assert not sending.done()
        for number in range(200):
            assert (await ours.hear()).startswith(b"%d " % number)
        await sending


async def test_what_was_sent_before_the_end_is_heard_and_then_the_end() -> None:
    async with pair() as (ours, theirs):
        for number in range(3):
            await theirs.send(str(number))
        await theirs.close(1012, "going")
        assert [await ours.hear() for _ in range(3)] == [b"0", b"1", b"2"]
        with pytest.raises(ConnectionClosed, match="going"):
            await ours.hear()
        with pytest.raises(ConnectionClosed, match="going"):
            await ours.say(b"too late")


async def test_who_listens_is_told_that_the_connection_is_lost() -> None:
    async with pair() as (ours, theirs):
        hearing = asyncio.create_task(ours.hear())
        await asyncio.sleep(0.01)
        theirs.transport.abort()
        with pytest.raises(ConnectionClosed):
            await hearing


async def test_a_connection_that_breaks_while_it_is_full_is_lost_like_any_other() -> None:
    def broken(error: ConnectionResetError) -> None:
        for waiter in ours.drain_waiters:
            waiter.set_exception(error)

    async with pair() as (ours, theirs):
        theirs.transport.pause_reading()
        link = _WebSocket(ours)
        with pytest.raises(LostConnectionError, match="reset"):
            async with asyncio.timeout(10):
                asyncio.get_running_loop().call_later(0.2, broken, ConnectionResetError("reset"))
                while True:
                    await link.send(bytes(100_000))
        for end in (ours, theirs):
            end.transport.abort()
