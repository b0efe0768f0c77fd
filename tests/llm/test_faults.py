"""Each way in which a provider's stream breaks off, in each way in which people read one."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import httpx
import pytest

from tests.llm.models import Llmock
from tests.llm.reading import read
from tests.llm.texts import WHALES

pytestmark = pytest.mark.anyio

BEFORE_TEXT = {
    "awaited/chat": 1,
    "awaited/chat_in_threads": 1,
    "awaited/responses": 4,
    "awaited/messages": 3,
    "blocking/chat_blocking": 1,
    "blocking/responses_blocking": 4,
}
"""The chunks of the wire that come before the first piece of text, in each way of reading."""


class Fault(NamedTuple):
    kind: str
    endings: set[str]
    """How the body ends that meets it: with one of these exceptions."""
    script: dict[str, Any]
    params: dict[str, Any]


FAULTS = {
    "cut cleanly": Fault("truncate", {"TruncatedStreamError"}, {}, {}),
    "disconnected": Fault("disconnect", {"APIConnectionError", "RemoteProtocolError"}, {}, {}),
    "not JSON": Fault("malformed", {"JSONDecodeError"}, {}, {}),
    "silent for longer than the client waits": Fault(
        "stall", {"APITimeoutError", "ReadTimeout"}, {"stall_seconds": 2}, {"patience": 0.8}
    ),
    "silent for longer than the step may take": Fault(
        # A thread that nobody waits for any more may notice that after the end of the run.
        "stall",
        {"CancelledError", "NotInRunError"},
        {"stall_seconds": 2},
        {"timeout": "1500ms"},
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_try_that_breaks_off_is_withdrawn_and_the_next_one_stands(
    client: httpx.AsyncClient, provider: Llmock, model: str, fault: Fault
) -> None:
    async def write(way: str, before_text: int) -> None:
        name = f"{model}-{way.replace('/', '-')}"
        provider.says(name, WHALES)
        provider.breaks(name, fault.kind, before_text + 5, **fault.script)
        reading = await read(client, f"/{way}/{name}", llm=provider.url, **fault.params)
        *lost, text = reading.tries("write")
        assert lost, way
        for try_ in lost:
            assert WHALES.startswith(try_), way
            assert try_ != WHALES, way
        # What a worker thread fetches together with an error is not told.
        assert lost[0] or way == "awaited/chat_in_threads", way
        assert text == reading.response.json() == WHALES, way
        assert reading.transcript.text == reading.transcript.committed_text == WHALES, way
        endings = (await client.get(f"/endings/{name}")).json()
        assert "" in endings, way
        assert set(endings) <= {"", *fault.endings}, way

    await asyncio.gather(*(write(*way) for way in BEFORE_TEXT.items()))


async def test_many_at_the_same_time_with_a_fault_each(
    client: httpx.AsyncClient, provider: Llmock, model: str
) -> None:
    kinds = ["truncate", "disconnect", "malformed", None]

    async def write(number: int) -> None:
        name, text = f"{model}-{number}", f"{number} {WHALES}"
        kind = kinds[number % len(kinds)]
        provider.says(name, text)
        if kind is not None:
            provider.breaks(name, kind, 4 + number)
        way = list(BEFORE_TEXT)[number % len(BEFORE_TEXT)]
        reading = await read(client, f"/{way}/{name}", llm=provider.url)
        assert reading.transcript.committed_text == reading.response.json() == text
        assert len(reading.tries("write")) == (1 if kind is None else 2), (way, kind)

    await asyncio.gather(*map(write, range(12)))
