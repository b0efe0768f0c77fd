"""The connection ends at any byte, and what was assembled is exact."""

from __future__ import annotations

from typing import Any

import pytest

from durable_endpoints.client import Chunk, Commit, Metadata, Rollback, Transcript
from tests.durable_endpoints.client.forms import FORMS, Form
from tests.durable_endpoints.client.server import (
    HEARTBEAT,
    Asked,
    Said,
    answer,
    chunk,
    commit,
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
    commit(None, 4),
    response(5, body="Fin é"),
]
EVENTS = [
    Metadata("R"),
    Chunk("Grü", "A", "1"),
    Rollback("A", "2"),
    Chunk("ß🎈", None, "3"),
    Commit(None, "4"),
]


class Endpoint:
    """Streams `LOG`; cuts the first response off after `cut` bytes."""

    def __init__(self, is_reset: bool = False, in_one: bool = False) -> None:
        self.cut = 0
        self.is_reset = is_reset
        self.in_one = in_one
        self.asked: list[Asked] = []

    def __call__(self, asked: Asked) -> Said | bytes:
        self.asked.append(asked)
        whole = self.whole(asked)
        if len(self.asked) == 1:
            return Said(whole[: self.cut], self.is_reset)
        return whole

    def whole(self, asked: Asked) -> bytes:
        if asked.path == "/report":
            frames = [metadata(), *LOG]
        else:
            assert asked.path == "/wait?runId=R&token=T"
            after = int(asked.headers["last-event-id"])
            frames = [metadata(after), HEARTBEAT, *LOG[after:]]
        return stream(b"".join(frames)) if self.in_one else stream(*frames)


def seen_by(data: bytes) -> int | None:
    """The last id in what is left of the response, None if not even the first frame is."""
    if metadata() not in data:
        return None
    return sum(part in data for part in LOG)


async def cut_everywhere(form: Form, client: Any, endpoint: Endpoint, step: int) -> None:
    first = Asked("POST", "/report", {}, b"")
    whole = endpoint.whole(first)
    with serving(endpoint) as server:
        for cut in range(0, len(whole) + 1, step):
            endpoint.cut, endpoint.asked = cut, []
            read = await form.read(
                server.url + "/report", client=client, method="POST", json={"a": 1}
            )
            assert read.events == EVENTS, cut
            assert (read.response.status_code, read.response.text) == (200, "Fin é"), cut
            again = endpoint.asked[1:]
            seen = None if endpoint.is_reset else seen_by(whole[:cut])
            if seen == len(LOG):
                assert again == []
            elif endpoint.is_reset:
                assert len(again) == 1  # a reset takes with it what was not read yet
            elif seen is None:
                assert again == [endpoint.asked[0]], cut
            else:
                (asked,) = again
                assert (asked.method, asked.body) == ("GET", b"")
                assert asked.headers["last-event-id"] == str(seen), cut
                assert "idempotency-key" not in asked.headers
                assert asked.headers["accept"] == "text/event-stream"


@pytest.mark.parametrize("form", [FORMS["httpx"], FORMS["httpx-sync"]], ids=["async", "sync"])
async def test_a_cut_at_every_byte(form: Form, client: Any) -> None:
    await cut_everywhere(form, client, Endpoint(in_one=True), 1)


@pytest.mark.parametrize("form", [FORMS["httpx2"], FORMS["httpx2-sync"]], ids=["async", "sync"])
async def test_cuts_under_httpx2(form: Form, client: Any) -> None:
    await cut_everywhere(form, client, Endpoint(), 7)


async def test_cuts_by_a_reset(form: Form, client: Any) -> None:
    endpoint = Endpoint(is_reset=True)
    endpoint_whole = len(endpoint.whole(Asked("POST", "/report", {}, b"")))
    with serving(endpoint) as server:
        for cut in range(0, endpoint_whole, 37):
            endpoint.cut, endpoint.asked = cut, []
            read = await form.read(server.url + "/report", client=client, method="POST")
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
        stream(metadata(), *LOG[:4], url=None),
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
