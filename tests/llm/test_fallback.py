"""Another provider is asked when one has failed for good."""

from __future__ import annotations

import httpx
import pytest

from tests.llm.models import Llmock
from tests.llm.reading import read
from tests.llm.texts import WHALES

pytestmark = pytest.mark.anyio

TITLE = "A tale: whales. "


@pytest.mark.parametrize(
    ("faults", "because"),
    [
        (("truncate",), "TruncatedStreamError"),
        (("disconnect",), "APIConnectionError"),
        (("malformed", "disconnect", "truncate"), "TruncatedStreamError"),
    ],
    ids=["cut off", "disconnected", "all three tries fail"],
)
async def test_what_the_first_one_said_is_withdrawn(
    client: httpx.AsyncClient,
    provider: Llmock,
    other_provider: Llmock,
    model: str,
    faults: tuple[str, ...],
    because: str,
) -> None:
    provider.says(model, "Whales are fish, I think, or is it that they are mammals?")
    for kind in faults:
        provider.breaks(model, kind, 6)
    other_provider.says(model, WHALES)
    reading = await read(
        client,
        f"/fallback/{model}",
        first=provider.url,
        second=other_provider.url,
        retries=len(faults) - 1,
    )
    assert reading.response.json() == {"text": TITLE + WHALES, "because": because}
    assert reading.transcript.text == reading.transcript.committed_text == TITLE + WHALES
    *lost, nothing = reading.tries("first")
    assert len(lost) == len(faults)
    assert set(lost) == {"Whales are fish, I think, "}
    assert nothing == ""
    assert reading.tries("second") == [WHALES]
    assert provider.faults(model) == [f"stream:{kind}@6" for kind in faults]
    assert other_provider.faults(model) == [None]


async def test_it_is_not_asked_when_the_first_one_answers_at_last(
    client: httpx.AsyncClient, provider: Llmock, other_provider: Llmock, model: str
) -> None:
    provider.says(model, WHALES)
    provider.breaks(model, "truncate", 6)
    reading = await read(
        client, f"/fallback/{model}", first=provider.url, second=other_provider.url, retries=1
    )
    assert reading.response.json() == {"text": TITLE + WHALES, "because": ""}
    assert reading.transcript.committed_text == TITLE + WHALES
    assert reading.tries("second") == [""]
    assert other_provider.faults(model) == []


async def test_a_thread_that_still_listens_to_the_first_one_is_not_heard(
    client: httpx.AsyncClient, provider: Llmock, other_provider: Llmock, model: str
) -> None:
    provider.says(model, "Whales are fish, I think, or is it that they are mammals?")
    provider.breaks(model, "stall", 6, stall_seconds=1.1)
    other_provider.says(model, WHALES)
    other_provider.breaks(model, "stall", 10, stall_seconds=0.9)
    reading = await read(
        client,
        f"/fallback-blocking/{model}",
        first=provider.url,
        second=other_provider.url,
        timeout="800ms",
    )
    assert reading.response.json() == {"text": WHALES, "because": "TimeoutError"}
    assert reading.transcript.text == reading.transcript.committed_text == WHALES
    lost, nothing = reading.tries("first")
    assert lost in "Whales are fish, I think, "
    assert nothing == ""
    assert reading.tries("second") == [WHALES]
    # Its body ended after its try, and before the second step.
    assert len((await client.get(f"/endings/{model}")).json()) == 2
