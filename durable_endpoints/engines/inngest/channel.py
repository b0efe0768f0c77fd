"""The channel of one run at an Inngest server: frames go in, and come out to who listens then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import orjson

from durable_endpoints.protocol.checkpoints import Question

if TYPE_CHECKING:
    from durable_endpoints.engines.inngest.engine import InngestEngine

logger = logging.getLogger("durable_endpoints")

_AGAIN = 1.0
"""Seconds until a connection that was lost is opened again."""


async def publish(engine: InngestEngine, run_id: str, frames: AsyncIterator[bytes]) -> None:
    """Pass frames on to whoever reads the run's stream. That is no one's duty: what fails is
    logged."""
    try:
        server = engine.server
        response = await server.http.post(
            f"{server.url}/v1/realtime/publish/tee?channel={run_id}",
            content=frames,
            headers={**server.headers(), "content-type": "application/octet-stream"},
        )
        if response.status_code >= 300:
            logger.warning("run %s: its stream was refused with %d", run_id, response.status_code)
    except Exception as error:
        logger.warning("run %s: its stream was cut: %r", run_id, error)


async def subscribe(engine: InngestEngine, run_id: str) -> AsyncIterator[bytes]:
    """What comes in a run's stream, from now on, as long as the server passes it on."""
    while not engine.is_draining:
        try:
            server, token = engine.server, await _token(engine, run_id)
            url = f"{server.url}/v1/realtime/sse?token={token}"
            async with server.http.stream("GET", url, timeout=None) as response:
                if response.status_code == 200:
                    async for piece in response.aiter_bytes():
                        yield piece
        except Exception as error:
            logger.debug("run %s: its stream was lost: %r", run_id, error)
        await asyncio.sleep(_AGAIN)


async def _token(engine: InngestEngine, run_id: str) -> str:
    if token := engine.tokens.take_realtime(run_id):
        return token
    topics: list[dict[str, Any]] = [{"channel": run_id, "name": "$stream", "kind": "run"}]
    question = Question("POST", "/v1/realtime/token", orjson.dumps(topics))
    return str((await engine.server.read(question))["jwt"])
