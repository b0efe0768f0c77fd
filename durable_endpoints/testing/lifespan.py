"""An application's lifespan, run for a test as a server would (ASGI lifespan protocol 2.0)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp, Message


@asynccontextmanager
async def running(app: ASGIApp) -> AsyncIterator[dict[str, Any]]:
    """Start `app`, give its lifespan's state, and shut it down at the end, whatever that is.

    Raises what the application raises, and `RuntimeError` if it says that it could not start.
    """
    state: dict[str, Any] = {}
    told: asyncio.Queue[Message] = asyncio.Queue()
    heard: asyncio.Queue[Message] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state}

    async def call() -> None:
        await app(scope, told.get, heard.put)

    serving = asyncio.create_task(call())

    async def ask(phase: str) -> None:
        told.put_nowait({"type": f"lifespan.{phase}"})
        answer = asyncio.create_task(heard.get())
        await asyncio.wait({answer, serving}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            serving.result()
            raise RuntimeError(f"the application's lifespan ended before {phase} was complete")
        message = answer.result()
        if message["type"] != f"lifespan.{phase}.complete":
            await serving  # whose own exception says more
            raise RuntimeError(f"the application's {phase} failed: {message.get('message')}")

    try:
        await ask("startup")
        try:
            yield state
        finally:
            await ask("shutdown")
        await serving
    finally:
        serving.cancel()
        await asyncio.wait({serving})
