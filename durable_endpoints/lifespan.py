"""The application's start and end, as its middleware sees them."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from durable_endpoints.application import Application
from durable_endpoints.errors import DurableEndpointsError

logger = logging.getLogger("durable_endpoints")


async def run_lifespan(
    application: Application, app: ASGIApp, scope: Scope, receive: Receive, send: Send
) -> None:
    """Start the engine before the application, serve once it has started, drain before it ends.

    An engine that cannot start fails the start of the application, with the reason.
    """
    message = await receive()
    try:
        await application.start()
    except DurableEndpointsError as error:
        await fail_startup(error, send)
    first: list[Message] = [message]
    failed = True

    async def receive_and_drain() -> Message:
        if first:
            return first.pop()
        message = await receive()
        if message["type"] == "lifespan.shutdown":
            await application.stop()
        return message

    async def send_and_serve(message: Message) -> None:
        nonlocal failed
        if message["type"] == "lifespan.startup.complete":
            failed = False
            application.see(scope)
            application.serve(scope.get("state", {}))
        await send(message)

    with _told_of_signals(application.begin_drain):
        try:
            await app(scope, receive_and_drain, send_and_serve)
        finally:
            if failed:
                await application.stop()


async def fail_startup(error: DurableEndpointsError, send: Send) -> NoReturn:
    """Tell the server that the application cannot start, and why; raises `error`, as Starlette
    does, whose test client goes by that."""
    logger.error("durable-endpoints could not start: %s", error)
    await send({"type": "lifespan.startup.failed", "message": str(error)})
    raise error


@contextmanager
def _told_of_signals(begin_drain: Callable[[], None]) -> Iterator[None]:
    """Call `begin_drain` on SIGTERM and SIGINT, then whatever handled them before.

    A server tells an application of its end only after all connections are closed, which a client
    that waits for its run would hold up. The server's own handlers are in place by now; a signal
    without one is left alone, or it would be swallowed.
    """
    loop = asyncio.get_running_loop()
    previous: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(begin_drain)
        previous[signal.Signals(number)](number, frame)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)
            if callable(handler) and handler is not signal.default_int_handler:
                previous[number] = handler
                signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, handler)
