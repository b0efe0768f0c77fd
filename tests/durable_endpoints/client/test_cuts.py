"""The connection ends at any byte, and what was assembled is exact."""

from __future__ import annotations

from typing import Any

import pytest

from durable_endpoints.client import Chunk, Metadata, Rollback, Transcript
from tests.durable_endpoints.client.forms import FORMS, Form
from tests.durable_endpoints.client.server import (
    HEARTBEAT,
    Asked,
    Said,
    answer,
    chunk,
    frame,
    in_turn,
    metadata,
    response,
    rollback,
    serving,
    stream,
)

pytestmark = pytest.mark.anyio

LOG = [
    chunk("Grü", 1, "A"),
    rollback("A", 2),
    chunk("ß🎈", 3),
    response(4, body="Fin é", headers={}),
]
EVENTS = [
    Metadata("R"),
    Chunk("Grü", "A", "1"),
    Rollback("A", "2"),
    Chunk("ß🎈", None, "3"),
]


class Endpoint:
    """Streams `LOG`; cuts its responses off, each where `cuts` says, until that has no more."""

    def __init__(self, is_reset: bool = False, in_one: bool = False) -> None:
        self.cuts: list[int] = []
        self.asked: list[Asked] = []
        self._is_reset = is_reset
        self._in_one = in_one

    def __call__(self, asked: Asked) -> Said | bytes:
        self.asked.append(asked)
        whole = self.whole(asked)
        return Said(whole[: self.cuts.pop(0)], self._is_reset) if self.cuts else whole

    def whole(self, asked: Asked) -> bytes:
        if asked.path == "/report":
            frames = [metadata(), *LOG]
        else:
            assert asked.path == "/wait?runId=R&token=T"
            after = int(asked.headers["last-event-id"])
            frames = [metadata(after), HEARTBEAT, *LOG[after:]]
        return stream(b"".join(frames)) if self._in_one else stream(*frames)

    def expect(self, *cuts: int) -> None:
        self.cuts, self.asked = list(cuts), []


FIRST = Asked("POST", "/report", {}, b"")


async def cut_everywhere(form: Form, client: Any, endpoint: Endpoint, step: int) -> None:
    whole = endpoint.whole(FIRST)
    begun = whole.index(metadata()) + len(metadata())

    async def check(url: str, *cuts: int) -> list[Asked]:
        endpoint.expect(*cuts)
        read = await form.read(url, client=client, method="POST", json={"a": 1})
        assert read.events == EVENTS, cuts
        assert (read.response.status_code, read.response.text) == (200, "Fin é"), cuts
        return endpoint.asked

    with serving(endpoint) as server:
        url = f"{server.url}/report"
        # Before the first frame it is the same request again, as often as it takes.
        asked = await check(url, *range(0, begun, step))
        assert len(asked) == len(range(0, begun, step)) + 1
        assert asked == [asked[0]] * len(asked)
        for cut in range(begun, len(whole) + 1, step):
            seen = sum(part in whole[:cut] for part in LOG)
            first, *again = await check(url, cut)
            assert first.method == "POST"
            if seen == len(LOG):
                assert again == []
                continue
            (asked_again,) = again
            assert (asked_again.method, asked_again.body) == ("GET", b"")
            assert asked_again.headers["last-event-id"] == str(seen), cut
            assert asked_again.headers["accept"] == "text/event-stream"
            assert "idempotency-key" not in asked_again.headers


@pytest.mark.parametrize("form", [FORMS["httpx"], FORMS["httpx-sync"]], ids=["async", "sync"])
async def test_a_cut_at_every_byte(form: Form, client: Any) -> None:
    await cut_everywhere(form, client, Endpoint(in_one=True), 1)


@pytest.mark.parametrize("form", [FORMS["httpx2"], FORMS["httpx2-sync"]], ids=["async", "sync"])
async def test_cuts_under_httpx2(form: Form, client: Any) -> None:
    await cut_everywhere(form, client, Endpoint(), 7)


async def test_cuts_by_a_reset(form: Form, client: Any) -> None:
    """Which takes with it what was on the way, so what is asked next is not known."""
    endpoint = Endpoint(is_reset=True)
    with serving(endpoint) as server:
        for cut in range(0, len(endpoint.whole(FIRST)), 37):
            endpoint.expect(cut)
            read = await form.read(f"{server.url}/report", client=client, method="POST")
            assert read.events == EVENTS, cut
            assert read.response.text == "Fin é"


async def test_a_cut_after_every_frame_of_every_response(form: Form, client: Any) -> None:
    """Each connection brings one event; it is told once all the same."""

    def script(asked: Asked) -> bytes:
        after = int(asked.headers.get("last-event-id", 0))
        return stream(metadata(after), LOG[after], end=False)

    with serving(script) as server:
        read = await form.read(server.url + "/report", client=client)
        assert read.events == EVENTS
        assert read.response.text == "Fin é"
        assert len(server.asked) == len(LOG)


async def test_frames_that_come_again_are_not_told_again(form: Form, client: Any) -> None:
    """As from a server that does not know `Last-Event-ID`, or without a URL to read on at."""
    script = in_turn(
        stream(metadata(), *LOG[:2], end=False, url=None),
        stream(metadata(), *LOG[:3], url=None),
        stream(metadata(), *LOG, url=None),
    )
    with serving(script) as server:
        read = await form.read(server.url + "/report", client=client, method="PUT")
        assert read.events == EVENTS
        keys = {asked.headers["idempotency-key"] for asked in server.asked}
        assert ({asked.method for asked in server.asked}, len(keys)) == ({"PUT"}, 1)


async def test_the_address_in_the_stream_where_no_header_gave_one(form: Form, client: Any) -> None:
    address = frame("redirect_info", {"runId": "R", "url": "/elsewhere?x=1&after=sync"})
    script = in_turn(
        stream(metadata(), *LOG[:2], address, url=None),
        stream(metadata(2), *LOG[2:], url=None),
    )
    with serving(script) as server:
        read = await form.read(server.url + "/report", client=client)
        assert read.events == EVENTS
        assert server.asked[1].path == "/elsewhere?x=1&after=sync"
        assert server.asked[1].headers["last-event-id"] == "2"
        assert read.run_url == f"{server.url}/elsewhere?x=1&after=sync"


async def test_an_ordinary_answer_that_is_cut_is_asked_for_again(form: Form, client: Any) -> None:
    whole = answer(200, b"complete", "Content-Type: text/plain")
    with serving(in_turn(whole[:-3], Said(b"", is_reset=True), whole)) as server:
        read = await form.read(server.url, client=client, method="POST", content=b"x" * 100_000)
        assert (read.response.text, read.events) == ("complete", [])
        assert len({tuple(asked) for asked in map(_comparable, server.asked)}) == 1


async def test_opaque_ids_go_back_as_they_came(form: Form, client: Any) -> None:
    script = in_turn(
        stream(metadata("0"), chunk("a", "57.3"), chunk("b", "58.ü"), end=False),
        stream(metadata("58.ü"), chunk("c", "58.2"), response("x")),
    )
    with serving(script) as server:
        read = await form.read(server.url, client=client)
        transcript = Transcript()
        for event in read.events:
            transcript.feed(event)
        assert transcript.text == "abc"
        assert server.asked[1].headers["last-event-id"] == "58.ü"
        assert read.last_event_id == "58.2"


def _comparable(asked: Asked) -> tuple[Any, ...]:
    return asked.method, asked.path, tuple(sorted(asked.headers.items())), asked.body
