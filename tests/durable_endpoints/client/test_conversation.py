from __future__ import annotations

from collections.abc import Callable

import pytest

from durable_endpoints.client import Chunk, Metadata, Pacing, StreamError
from durable_endpoints.client.asking import Asking
from durable_endpoints.client.conversation import MAX_REDIRECTS, Conversation, Reading
from tests.durable_endpoints.client.server import (
    HEARTBEAT,
    chunk,
    commit,
    frame,
    log_line,
    metadata,
    progress,
    response,
)

URL = "https://api.example/report?x=1"
FIRST = Asking(
    "POST",
    URL,
    (
        (b"Host", b"api.example"),
        (b"Accept", b"text/event-stream"),
        (b"Authorization", b"Bearer secret"),
        (b"X-Api-Key", b"secret"),
        (b"Content-Type", b"application/json"),
        (b"Idempotency-Key", b"K"),
    ),
    b"{}",
    "https://api.example:443",
)
STREAM = {
    "content-type": "text/event-stream",
    "durable-run-id": "R",
    "durable-run-url": "/wait?runId=R&token=T",
}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Start = Callable[..., Conversation]


@pytest.fixture
def start(clock: Clock) -> Start:
    def make(first: Asking = FIRST, give_up_after: float = 300.0, **more: str) -> Conversation:
        pacing = Pacing(random=lambda: 1.0, clock=clock)
        return Conversation(first, give_up_after, pacing, **more)

    return make


def drained(talk: Conversation) -> list[object]:
    return list(iter(talk.take, None))


def names(asking: Asking) -> set[bytes]:
    return {name.lower() for name, _ in asking.headers_to_send}


def test_the_delay_doubles_until_something_new_is_heard(start: Start) -> None:
    talk = start()
    lost = OSError("lost")
    delays = []
    for _ in range(4):
        assert talk.asks() == FIRST
        talk.breaks(lost)
        delays.append(talk.delay)
    talk.asks()
    talk.starts(200, STREAM)
    talk.hears(metadata())  # a server that dies after each of them must not be overrun
    talk.breaks(lost)
    delays.append(talk.delay)
    for data in (chunk("x", 1), HEARTBEAT):
        talk.asks()
        talk.starts(200, STREAM)
        talk.hears(metadata(0) + data)
        talk.breaks(lost)
        delays.append(talk.delay)
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 0.1, 0.1]


def test_a_clean_end_is_followed_at_once_at_first(start: Start) -> None:
    talk = start()
    delays = []
    for _ in range(3):
        talk.asks()
        assert talk.starts(200, STREAM) is Reading.STREAM
        talk.hears(metadata())
        talk.breaks(None)
        delays.append(talk.delay)
    assert delays == [0.0, 0.2, 0.4]
    assert drained(talk) == [Metadata("R")]


def test_it_gives_up_after_the_last_sign_of_life(start: Start, clock: Clock) -> None:
    talk, lost = start(), ConnectionError("the last")
    talk.breaks(OSError("first"))
    clock.now += 299.95
    talk.breaks(OSError("second"))
    assert talk.delay == pytest.approx(0.05)  # the last try is made when patience ends
    clock.now += talk.delay
    with pytest.raises(ConnectionError, match="the last"):
        talk.breaks(lost)


def test_it_gives_the_last_answer_when_it_gives_up(start: Start, clock: Clock) -> None:
    talk = start()
    talk.breaks(OSError("first"))
    clock.now += 300
    assert talk.starts(502, {}) is Reading.ANSWER
    talk.answers("page", 502, {})
    assert (talk.answer, talk.is_over) == ("page", True)


def test_streams_without_anything_are_given_up_too(start: Start, clock: Clock) -> None:
    talk = start()
    talk.starts(200, STREAM)
    clock.now += 300
    with pytest.raises(StreamError, match="without a response"):
        talk.breaks(None)


def test_a_run_may_wait_for_days(start: Start, clock: Clock) -> None:
    talk = start()
    talk.asks()
    talk.starts(200, STREAM)
    talk.hears(metadata())
    for _ in range(3 * 24 * 60 * 4):
        clock.now += 15
        talk.hears(HEARTBEAT)
    talk.breaks(OSError("lost"))
    assert talk.delay == 0.1
    clock.now += 301
    with pytest.raises(OSError, match="again"):
        talk.breaks(OSError("again"))


def test_a_slow_reader_is_not_the_networks_fault(start: Start, clock: Clock) -> None:
    talk = start()
    talk.asks()
    talk.starts(200, STREAM)
    talk.hears(metadata() + chunk("x", 1))
    for _ in range(2):
        assert talk.take() is not None
        clock.now += 3600
    assert talk.take() is None
    talk.breaks(OSError("lost"))
    assert talk.delay == 0.1


def test_patience_may_be_none_or_endless(start: Start, clock: Clock) -> None:
    with pytest.raises(OSError, match="lost"):
        start(give_up_after=0.0).breaks(OSError("lost"))
    talk = start(give_up_after=float("inf"))
    clock.now += 1e9
    talk.breaks(OSError("lost"))
    assert talk.delay == 0.1


@pytest.mark.parametrize(
    ("status", "headers", "is_answer"),
    [
        (503, {}, False),
        (502, {}, False),
        (504, {}, False),
        (429, {}, False),
        (503, {"durable-run-id": "R", "durable-run-status": "unavailable"}, False),
        (503, {"durable-run-id": "R", "durable-run-status": "parked"}, True),
        (504, {"durable-run-id": "R", "durable-run-status": "failed"}, True),
        (503, {"durable-run-id": "R"}, True),  # the handler's own
        (503, {"durable-step-executed": "charge"}, True),
        (500, {}, True),
        (400, {}, True),
        (401, {}, True),
        (403, {}, True),
        (404, {}, True),
        (409, {}, True),
        (410, {}, True),
        (204, {}, True),
    ],
)
def test_what_is_an_answer(
    start: Start, status: int, headers: dict[str, str], is_answer: bool
) -> None:
    talk = start()
    talk.asks()
    assert talk.starts(status, headers) is Reading.ANSWER
    talk.answers("it", status, headers)
    assert talk.is_over == is_answer


def test_retry_after(start: Start) -> None:
    talk = start()
    for header, delay in (("7", 7.0), ("100000", 60.0)):
        talk.answers("page", 503, {"retry-after": header})
        assert talk.delay == delay


def test_redirects_as_browsers_follow_them(start: Start) -> None:
    cases = [
        (303, "POST", "GET"),
        (303, "GET", "GET"),
        (303, "HEAD", "HEAD"),
        (302, "POST", "GET"),
        (302, "HEAD", "HEAD"),
        (301, "POST", "GET"),
        (301, "PUT", "PUT"),
        (307, "POST", "POST"),
        (308, "PUT", "PUT"),
    ]
    for status, method, then in cases:
        asking = Asking(method, URL, FIRST.headers, b"{}", FIRST.home)
        talk = start(asking)
        talk.asks()
        assert talk.starts(status, {"location": "../there?y=2#part"}) is Reading.NOTHING
        asked = talk.asks()
        assert (asked.method, asked.url) == (then, "https://api.example/there?y=2")
        is_same = status not in (301, 302, 303) or then == method != "GET"
        assert asked.body == (b"{}" if is_same else b"")
        assert ({b"content-type", b"idempotency-key"} <= names(asked)) == is_same
        assert {b"authorization", b"accept", b"x-api-key", b"host"} <= names(asked)


@pytest.mark.parametrize(
    ("location", "is_at_home"),
    [
        ("/wait", True),
        ("https://api.example:443/wait", True),
        ("https://API.example/wait", True),
        ("http://api.example/wait", False),
        ("https://api.example:8443/wait", False),
        ("https://evil.example/wait", False),
        ("//evil.example/wait", False),
        ("https://api.example@evil.example/wait", False),
    ],
)
def test_credentials_stay_at_home(start: Start, location: str, is_at_home: bool) -> None:
    talk = start()
    talk.asks()
    talk.starts(303, {"location": location})
    asked = talk.asks()
    assert asked.is_at_home == is_at_home
    assert (names(asked) >= {b"authorization", b"x-api-key", b"host"}) == is_at_home
    assert b"accept" in names(asked)
    talk.starts(200, STREAM)
    talk.hears(metadata())
    talk.breaks(None)
    assert talk.asks().is_at_home == is_at_home  # the run's URL is at the place that named it
    talk.starts(303, {"location": URL})
    assert b"authorization" in names(talk.asks())


def test_redirects_end_somewhere(start: Start) -> None:
    talk = start()
    for _ in range(MAX_REDIRECTS):
        talk.asks()
        talk.starts(303, {"location": "/again"})
    with pytest.raises(StreamError, match="20 redirects"):
        talk.starts(303, {"location": "/again"})
    with pytest.raises(StreamError, match="no URL"):
        start().starts(303, {"location": "http://[::1"})


def test_only_redirects_in_a_row_are_counted(start: Start) -> None:
    talk = start()
    for _ in range(3 * MAX_REDIRECTS):
        talk.asks()
        talk.starts(303, {"location": "/wait?runId=R&token=T"})
        talk.asks()
        talk.starts(200, STREAM)
        talk.breaks(OSError("lost"))


def test_a_request_that_is_repeated_may_be_redirected_as_often_again(start: Start) -> None:
    talk = start()
    for _ in range(MAX_REDIRECTS):
        talk.asks()
        talk.starts(303, {"location": "/wait?runId=R&token=T"})
        talk.asks()
        talk.breaks(OSError("lost"))
    assert talk.asks() == FIRST


def test_a_failure_behind_a_redirect_repeats_the_request_itself(start: Start) -> None:
    talk = start()
    talk.asks()
    talk.starts(303, {"location": "/wait?runId=R&token=T"})
    assert talk.asks().method == "GET"
    talk.breaks(OSError("lost"))
    assert talk.asks() == FIRST


def test_a_redirect_of_the_runs_url_takes_the_position_along(start: Start) -> None:
    talk = start()
    talk.asks()
    talk.starts(200, STREAM)
    talk.hears(metadata() + chunk("x", 1))
    talk.breaks(None)
    asked = talk.asks()
    assert (asked.method, asked.url) == ("GET", "https://api.example/wait?runId=R&token=T")
    talk.starts(307, {"location": "/wait/?runId=R&token=T"})
    asked = talk.asks()
    assert asked.url == "https://api.example/wait/?runId=R&token=T"
    assert (b"Last-Event-ID", b"1") in asked.headers_to_send


def test_going_on_from_a_stored_position(start: Start) -> None:
    url = "https://api.example/wait?runId=R&token=T&view=committed"
    first = Asking("GET", url, FIRST.headers, b"", FIRST.home)
    talk = start(first, last_event_id="57.3")
    for _ in range(2):
        assert (b"Last-Event-ID", b"57.3") in talk.asks().headers
        talk.breaks(OSError("lost"))
    talk.asks()
    talk.starts(200, STREAM)
    talk.hears(metadata("57.3") + chunk("x", "57.4"))
    assert drained(talk) == [Metadata("R"), Chunk("x", None, "57.4")]
    talk.breaks(OSError("lost"))
    asked = talk.asks()
    assert asked.url == url  # and not the header's, which would be another view
    assert [value for name, value in asked.headers if name == b"Last-Event-ID"] == [b"57.4"]


def test_an_interrupted_reader_goes_on_behind_what_was_heard(start: Start) -> None:
    talk = start()
    talk.asks()
    talk.starts(200, STREAM)
    talk.hears(metadata() + chunk("x", 1) + chunk("y", 2) + b"id: 3\nevent: inngest.str")
    assert (b"Last-Event-ID", b"2") in talk.asks().headers  # without any failure
    assert talk.last_event_id is None
    talk.take()
    talk.take()
    assert talk.last_event_id == "1"  # what was handed out, not what was heard


def test_unknown_events_are_nothing_but_their_ids_count(start: Start) -> None:
    talk = start()
    talk.asks()
    talk.starts(200, STREAM)
    talk.hears(metadata() + b"id: 1\nevent: durable.other\ndata: not json\n\n")
    talk.hears(b"event: x\ndata: y\n\n" + chunk("x", None))
    assert drained(talk) == [Metadata("R"), Chunk("x", None, "1")]
    talk.breaks(None)
    assert (b"Last-Event-ID", b"1") in talk.asks().headers


def test_nothing_counts_after_the_end(start: Start) -> None:
    talk = start()
    talk.starts(200, STREAM)
    talk.hears(metadata() + response(1) + chunk("x", 2) + response(3, "other"))
    assert drained(talk) == [Metadata("R")]
    assert talk.ending is not None
    assert talk.ending.body == b"done"


@pytest.mark.parametrize(
    "data",
    [
        b"id: 1\nevent: inngest.stream\ndata: {\n\n",
        b"id: 1\nevent: inngest.stream\ndata: []\n\n",
        frame("stream", {}, 1),
        frame("stream", {"data": 1, "hashedStepId": 7}, 1),
        progress({"total": 1}, 1),
        progress({"current": "1"}, 1),
        log_line({"level": "info", "message": 7, "time": 1}, 1),
        log_line({"level": "info", "message": "x", "time": 1, "data": []}, 1),
        frame("commit", None, 1),
        frame("metadata", {"runId": None}, 1),
        frame("metadata", {"runId": "another"}, 1),
        frame("redirect_info", {"runId": "R"}),
        frame("response", {}, 1),
        frame("response", {"response": {"statusCode": "200", "headers": {}, "body": ""}}, 1),
        frame("response", {"response": {"statusCode": 200, "headers": {}, "body": None}}, 1),
        response(1, bodyBase64="?"),
        response(1, headerList=[["one"]]),
        response(1, headerList=[["one", 1]]),
    ],
)
def test_nonsense_is_an_error(start: Start, data: bytes) -> None:
    talk = start()
    talk.asks()
    talk.starts(200, STREAM)
    with pytest.raises(StreamError):
        talk.hears(metadata() + data)


def test_a_stream_of_another_kind_is_an_error(start: Start) -> None:
    talk = start()
    talk.asks()
    talk.starts(200, {"content-type": "text/event-stream"})
    with pytest.raises(StreamError, match="endpoint's own"):
        talk.hears(b"data: tick\n\n")


def test_only_a_200_is_a_stream(start: Start) -> None:
    for status, kind, reading in (
        (200, "text/event-stream", Reading.STREAM),
        (200, "Text/Event-Stream; charset=utf-8", Reading.STREAM),
        (200, "application/json", Reading.ANSWER),
        (201, "text/event-stream", Reading.ANSWER),
        (404, "text/event-stream", Reading.ANSWER),
    ):
        assert start().starts(status, {"content-type": kind}) is reading


def test_a_commit_may_be_of_no_step(start: Start) -> None:
    talk = start()
    talk.starts(200, STREAM)
    talk.hears(metadata() + commit(None, 1))
    assert drained(talk)[1] == (None, "1")
