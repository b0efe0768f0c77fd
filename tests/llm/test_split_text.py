"""Text whose characters arrive in parts."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import httpx
import pytest

from durable_endpoints.client import Transcript, open_stream
from tests.llm.reading import read
from tests.llm.splitting import SplittingProxy, TextServer, serving
from tests.llm.texts import SCRIPTS, SIZES, uncut

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def split_aimock(aimock: str) -> Iterator[str]:
    with serving(SplittingProxy(aimock)) as url:
        yield url


@pytest.fixture
def text_server() -> Iterator[TextServer]:
    server = TextServer(SCRIPTS)
    with serving(server):
        yield server
        server.go_on.set()


WAYS = ["awaited/chat", "awaited/chat_in_threads", "awaited/responses", "blocking/chat_blocking"]
TEXT_READERS = ["response", "bytes", "blocking_response", "in_thread"]
FIRST_HALF = SCRIPTS.encode()[: len(SCRIPTS.encode()) // 2].decode("utf-8", "ignore")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS)
async def test_a_language_model_in_many_scripts(
    client: httpx.AsyncClient, split_aimock: str, way: str, size: int
) -> None:
    reading = await read(client, f"/{way}/by-{size}", llm=split_aimock)
    text = uncut(SCRIPTS, size)
    assert reading.response.json() == text
    assert reading.tries("write") == [text]
    assert reading.transcript.committed_text == text


@pytest.mark.parametrize("way", WAYS)
async def test_a_language_model_behind_a_gateway_that_cuts_between_surrogates(
    client: httpx.AsyncClient, aimock: str, way: str
) -> None:
    """JavaScript cuts texts between units of UTF-16: half an emoji is JSON, and no Unicode."""
    reading = await read(client, f"/{way}/cut", llm=aimock)
    assert reading.response.json() == SCRIPTS
    assert reading.transcript.committed_text == SCRIPTS


@pytest.mark.parametrize("way", TEXT_READERS)
async def test_a_plain_response(
    client: httpx.AsyncClient, text_server: TextServer, model: str, way: str
) -> None:
    reading = await read(client, f"/text/{way}/{model}", url=f"{text_server.url}/whole")
    assert reading.response.json() == SCRIPTS
    assert reading.tries("write") == [SCRIPTS]
    assert reading.transcript.committed_text == SCRIPTS


@pytest.mark.parametrize("way", TEXT_READERS)
async def test_a_plain_response_that_breaks_off_within_a_character(
    client: httpx.AsyncClient, text_server: TextServer, model: str, way: str
) -> None:
    reading = await read(client, f"/text/{way}/{model}", url=f"{text_server.url}/cut/{model}")
    lost, text = reading.tries("write")
    assert FIRST_HALF.startswith(lost)
    assert text == reading.response.json() == SCRIPTS
    assert reading.transcript.committed_text == SCRIPTS
    assert (await client.get(f"/endings/{model}")).json() == ["RemoteProtocolError", ""]


@pytest.mark.parametrize(
    "way",
    [
        "response",
        "bytes",
        "blocking_response",
        "in_thread",
    ],
)
async def test_a_plain_response_that_halts_is_told_as_far_as_it_has_come(
    client: httpx.AsyncClient, text_server: TextServer, model: str, way: str
) -> None:
    url = f"{text_server.url}/halting/{model}"
    transcript = Transcript()
    async with open_stream(f"/text/{way}/{model}", client=client, params={"url": url}) as stream:
        with anyio.move_on_after(2):
            while transcript.text != FIRST_HALF:
                transcript.feed(await anext(stream))
        halted_at = transcript.text
        text_server.go_on.set()
        async for event in stream:
            transcript.feed(event)
    assert transcript.committed_text == stream.response.json() == SCRIPTS
    assert halted_at == FIRST_HALF
