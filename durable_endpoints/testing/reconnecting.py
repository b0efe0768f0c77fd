"""A client that does not lose its answer with its connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import uuid4

import httpx

_REPEATED = 20
"""How often a request is repeated, at the most."""


class Reconnecting(httpx.AsyncBaseTransport):
    """Gives each request an `Idempotency-Key`, and repeats one whose connection broke."""

    def __init__(
        self, transport: httpx.AsyncBaseTransport, pause: Callable[[], Awaitable[object]]
    ) -> None:
        """`pause` is awaited before a repetition."""
        self._transport = transport
        self._pause = pause

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.headers.setdefault("idempotency-key", str(uuid4()))
        for _ in range(_REPEATED):
            try:
                return await self._transport.handle_async_request(request)
            except httpx.RemoteProtocolError:
                await self._pause()
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._transport.aclose()
