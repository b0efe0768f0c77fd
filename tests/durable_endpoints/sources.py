"""What tests stream: words that come one by one, and a writer whose first tries fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from durable_endpoints import (
    stream,
)
from durable_endpoints.protocol.step_ids import hash_name
from tests.durable_endpoints.streams import Frame

A, B = hash_name("a"), hash_name("b")


async def seen() -> None:
    """Let readers see what was streamed, before it is withdrawn: later ones are spared that."""
    await asyncio.sleep(0.02)


async def words(text: str, fail_after: int | None = None) -> AsyncIterator[str]:
    for n, word in enumerate(text.split(" ")):
        if n == fail_after:
            await seen()
            raise RuntimeError("the provider went away")
        yield word if n == 0 else " " + word
        await asyncio.sleep(0)


class Flaky:
    """Writes a text; the first tries fail in the middle of it."""

    def __init__(self, failures: int = 1) -> None:
        self.failures = failures
        self.tries = 0

    async def write(self) -> str:
        self.tries += 1
        fail_after = 2 if self.tries <= self.failures else None
        return await stream.pipe(words("one two three four", fail_after))


def url_of(frames: list[Frame]) -> str:
    return next(str(f.data["url"]) for f in frames if f.event == "inngest.redirect_info")
