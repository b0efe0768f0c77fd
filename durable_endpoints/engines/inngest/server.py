"""An Inngest server as one event loop of this process talks to it: questions, events, failures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, TypeVar
from urllib.parse import quote

import orjson

from durable_endpoints.checkpoint_client import (
    TRIES,
    Address,
    Asker,
    CheckpointClient,
    Tries,
    http_client,
)
from durable_endpoints.engines.background import Background
from durable_endpoints.engines.remote.dialing import is_local
from durable_endpoints.errors import StorageError
from durable_endpoints.protocol import checkpoints, signing
from durable_endpoints.protocol.checkpoints import (
    CheckpointError,
    CheckpointRefusedError,
    Question,
    UnknownRunError,
)
from durable_endpoints.settings import Settings

T = TypeVar("T")

_TROUBLED = 10.0
"""Seconds for which a failure counts."""


class Server:
    """The server of `settings.server_url`, and what runs in the background on its behalf."""

    def __init__(self, settings: Settings) -> None:
        assert settings.server_url is not None
        self.url = settings.server_url
        proxies = {"trust_env": False} if is_local(self.url) else {}
        self.http: Any = http_client("AsyncClient", **proxies)
        key, fallback = settings.signing_key, settings.signing_key_fallback
        self.checkpoints = CheckpointClient(
            self.url, signing_key=key, signing_key_fallback=fallback, client=self.http
        )
        """How runs are reported."""
        self.drain = asyncio.Event()
        """Set once nobody shall wait for a run any more."""
        self.background = Background()
        self._key = key
        self._timeout = settings.server_timeout / 1_000
        self._event_key = settings.event_key or "NO_EVENT_KEY_SET"
        self._asker = Asker(Address(self.url, key, fallback), self.http)
        self._failed_at = 0.0

    async def close(self) -> None:
        """End what runs in the background, and the connections."""
        await self.background.end()
        await self.http.aclose()

    async def read(self, question: Question, tries: int = TRIES) -> dict[str, Any]:
        """Ask for a JSON object. Raises as `ask` does."""
        answer = await self.ask(question, tries)
        try:
            return checkpoints.read_object(answer)
        except CheckpointError as error:
            raise self.failed(error) from error

    async def ask(self, question: Question, tries: int = TRIES) -> bytes:
        """Put a question to the server. Raises `StorageError`, and `UnknownRunError`."""
        try:
            return await self.in_time(self._asker.ask(question, Tries(most=tries)))
        except CheckpointRefusedError as error:
            raise StorageError(
                f"the server takes no such key: {error}. Set DURABLE_ENDPOINTS_SIGNING_KEY, and "
                "for events DURABLE_ENDPOINTS_EVENT_KEY, to one of its own",
                where="",
            ) from None
        except UnknownRunError:
            raise
        except CheckpointError as error:
            raise self.failed(error) from error

    async def in_time(self, answer: Awaitable[T]) -> T:
        """What the server answers, however often it is asked. Raises `StorageError` if that takes
        longer than `server_timeout`."""
        try:
            async with asyncio.timeout(self._timeout):
                return await answer
        except TimeoutError:
            raise self.failed(
                CheckpointError("the server that keeps the runs does not answer in time")
            ) from None

    def failed(self, error: CheckpointError) -> StorageError:
        """The server did not do its part; what to raise."""
        self._failed_at = time.monotonic()
        return StorageError(str(error), where="")

    @property
    def is_healthy(self) -> bool:
        """Whether nothing failed in the last seconds."""
        return not self._failed_at or time.monotonic() - self._failed_at > _TROUBLED

    def headers(self) -> dict[str, str]:
        """What opens the server to a request that is made by `http`."""
        return {"authorization": f"Bearer {signing.hashed(self._key)}"} if self._key else {}

    async def send(self, event: dict[str, Any]) -> None:
        """Send an event to the server, which counts its id once. Raises `StorageError`."""
        path = f"/e/{quote(self._event_key, safe='')}"
        try:
            answer = await self.read(Question("POST", path, orjson.dumps(event)))
        except UnknownRunError as error:
            raise StorageError(f"the server takes no events: {error}", where="") from None
        if answer.get("status", 200) != 200:
            raise StorageError(f"the server did not take an event: {answer}", where="")

    async def send_signal(self, name: str, data: bytes) -> bool:
        """Give a signal to the run that waits for it: whether there is one."""
        body = orjson.dumps({"signal": name, "data": orjson.Fragment(data)})
        try:
            await self.ask(Question("POST", "/v1/signals", body))
        except UnknownRunError:
            return False
        return True
