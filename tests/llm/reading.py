"""What a reader of a stream got to see, and what it makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx

from durable_endpoints.client import Chunk, Rollback, StreamEvent, Transcript, open_stream
from tests.interop.clients import step_hash


@dataclass(frozen=True)
class Reading:
    events: list[StreamEvent]
    response: httpx.Response

    @cached_property
    def transcript(self) -> Transcript:
        transcript = Transcript()
        for event in self.events:
            transcript.feed(event)
        return transcript

    def tries(self, name: str) -> list[str]:
        """The text of each try of a step: the last one stands, a rollback ended the others."""
        tries = [""]
        for event in self.events:
            if isinstance(event, Chunk) and event.step == step_hash(name):
                tries[-1] += event.data
            elif isinstance(event, Rollback) and event.step == step_hash(name):
                tries.append("")
        return tries


async def read(client: httpx.AsyncClient, path: str, **params: Any) -> Reading:
    """Read a run's stream to its end, over as many connections as it takes."""
    async with open_stream(path, client=client, params=params, give_up_after=20) as stream:
        events = [event async for event in stream]
        return Reading(events, stream.response)
