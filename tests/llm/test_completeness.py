"""A stream that ends without an error, and without its end."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.llm.models import Llmock
from tests.llm.reading import Reading, read

pytestmark = pytest.mark.anyio

TEXT = "Whales are old."
LENGTHS = {
    "awaited/chat": (5, 7),
    "awaited/responses": (11, 11),
    "awaited/messages": (9, 9),
    "blocking/chat_blocking": (5, 7),
    "blocking/responses_blocking": (11, 11),
}
"""Of TEXT's stream in each way of reading: how many chunks say that it is complete, and how many
there are."""


@pytest.mark.parametrize("way", LENGTHS)
async def test_it_is_taken_for_an_answer_when_the_provider_has_said_that_it_is_one(
    client: httpx.AsyncClient, provider: Llmock, model: str, way: str
) -> None:
    complete, whole = LENGTHS[way]
    cuts = sorted({1, complete // 2, complete - 1, complete, whole})

    async def cut(after: int) -> Reading:
        name = f"{model}-{after}"
        provider.says(name, TEXT)
        provider.breaks(name, "truncate", after)
        return await read(client, f"/{way}/{name}", llm=provider.url, retries=0)

    readings = await asyncio.gather(*map(cut, cuts))
    for after, reading in zip(cuts, readings, strict=True):
        if after < complete:
            assert reading.response.status_code == 500, after
            assert reading.tries("write")[1:] == [""], after
            assert reading.transcript.text == "", after
        else:
            assert reading.response.json() == TEXT, after
            assert reading.transcript.committed_text == TEXT, after


@pytest.mark.parametrize("way", [way for way in LENGTHS if way != "awaited/messages"])
async def test_a_stream_that_ends_before_its_first_chunk_is_no_answer(
    client: httpx.AsyncClient, provider: Llmock, model: str, way: str
) -> None:
    provider.says(model, TEXT)
    provider.breaks(model, "truncate", 0)
    reading = await read(client, f"/{way}/{model}", llm=provider.url)
    assert reading.response.json() == TEXT
    assert reading.transcript.committed_text == TEXT
