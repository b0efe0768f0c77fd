"""Inngest's own `fetchWithStream`, unmodified, reads the streams of durable endpoints.

Its expectations are those of npm `inngest`, `experimental/durable-endpoints/client.js`.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import httpx
import pytest

from tests.chaos.process import Server
from tests.interop.clients import Chromium, Client, Reading, commit, data, rollback

VALUES = [
    None,
    True,
    0,
    -1.5e-7,
    2**53 - 1,
    "",
    "two\n\nlines\r\n",
    "data: {}\n\nevent: inngest.response\n\n",
    "ünï – 🐋 \u2028 \ud7ff \x00 \\",
    [],
    [[None], {}],
    {"": {"hashedStepId": None, "data": 1}},
    "x" * 200_000,
]
"""Chunks that a stream could garble."""


def test_two_steps_arrive_while_they_run(server: Server, client: Client, name: str) -> None:
    reading = client.read(f"{server.url}/two-steps/{name}", knock=f"{server.url}/open/{name}")
    assert reading.calls == [
        data("Hel", "greet"),
        data("lo", "greet"),
        commit("greet"),
        data(", ", "rest"),
        data("world", "rest"),
        commit("rest"),
    ]
    assert reading.answer.status == 201
    assert reading.answer.body == "Hello, world ✓"
    assert reading.answer.headers["x-name"] == name
    assert reading.answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_metadata_comes_before_all_else(server: Server, client: Client, name: str) -> None:
    reading = client.read(f"{server.url}/no-steps/{name}")
    callbacks = [call for call, _ in reading.lines if call != "fetch"]
    assert callbacks[0] == "metadata"
    first = reading.fetches[0]
    assert reading.run_ids == [first["headers"]["durable-run-id"]]
    assert first["headers"]["content-type"].startswith("text/event-stream")


def test_nothing_is_lost_or_doubled_across_the_redirect(
    server: Server, client: Client, name: str
) -> None:
    reading = client.read(f"{server.url}/across/{name}")
    assert reading.calls == [
        data("one ", "before"),
        data("two ", "before"),
        commit("before"),
        data("three ", "after"),
        data("four", "after"),
        commit("after"),
    ]
    assert reading.answer.status == 202
    assert reading.answer.body == "one two three four"
    assert reading.answer.headers["x-name"] == name
    assert_one_redirect(reading)


def test_chunks_come_once_and_in_order_through_many_executions(
    server: Server, client: Client, name: str
) -> None:
    reading = client.read(f"{server.url}/hops/{name}?count=8&chunks=250")
    assert_counts(reading, 2000)


def test_a_client_that_comes_to_the_redirect_after_the_run_has_ended_loses_nothing(
    server: Server, client: Client, name: str
) -> None:
    url = f"{server.url}/hops/{name}?count=3&chunks=30&width=10000"
    reading = client.read(url, pause=300)
    assert_counts(reading, 90)


def test_a_slow_stream_ends_where_the_redirect_goes_on(
    server: Server, client: Client, name: str
) -> None:
    """Although the run has gone on before all of its first execution is sent."""
    reading = client.read(f"{server.url}/behind/{name}")
    assert reading.calls == [
        data("first ", "first"),
        commit("first"),
        data("held ", "held"),
        data("back ", "held"),
        commit("held"),
        data("behind ", "behind"),
        commit("behind"),
        data("last", "last"),
        commit("last"),
    ]
    assert_one_redirect(reading)


def test_a_step_that_breaks_off_is_rolled_back_and_streamed_again(
    server: Server, client: Client, name: str
) -> None:
    reading = client.read(f"{server.url}/stumbles/{name}", knock=f"{server.url}/open/{name}")
    assert reading.calls == [
        data("A tale: ", "title"),
        commit("title"),
        data("once ", "write"),
        data("upon ", "write"),
        data("a tim", "write"),
        rollback("write"),
        data("once ", "write"),
        data("upon ", "write"),
        data("a time", "write"),
        commit("write"),
    ]
    assert "".join(reading.committed) == reading.answer.json() == "A tale: once upon a time"
    assert_one_redirect(reading)


def test_what_a_handler_streamed_is_rolled_back_until_something_is_remembered(
    server: Server, client: Client, name: str
) -> None:
    reading = client.read(
        f"{server.url}/stumbles-outside/{name}", knock=f"{server.url}/open/{name}"
    )
    assert reading.calls[:3] == [data("draft ", None), rollback(None), data("draft ", None)]
    assert reading.chunks(None) == ["draft ", "draft "]
    assert reading.chunks("write") == ["kept"]
    assert reading.committed == ["draft ", "kept"]
    assert reading.answer.json() == "kept"


def test_a_step_that_fails_for_good_is_rolled_back_and_the_answer_is_500(
    server: Server, client: Client, name: str
) -> None:
    reading = client.read(f"{server.url}/step-fails/{name}", knock=f"{server.url}/open/{name}")
    assert reading.calls == [
        data("kept", "fine"),
        commit("fine"),
        data("lost", "broken"),
        rollback("broken"),
    ]
    assert reading.answer.status == 500
    assert "Traceback" not in reading.answer.body


def test_a_failure_that_the_handler_catches_does_not_end_the_stream(
    server: Server, client: Client, name: str
) -> None:
    reading = client.read(f"{server.url}/failure-caught/{name}", knock=f"{server.url}/open/{name}")
    assert reading.calls == [
        data("lost", "broken"),
        rollback("broken"),
        data("instead of ", "instead"),
        data("ValueError", "instead"),
        commit("instead"),
    ]
    assert reading.answer.status == 200
    assert reading.answer.json() == "instead of ValueError"


def test_a_handler_that_raises_answers_500_and_keeps_its_secrets(
    server: Server, client: Client, name: str
) -> None:
    reading = client.read(f"{server.url}/raises/{name}")
    assert reading.calls == [data("kept", "fine"), commit("fine")]
    assert reading.answer.status == 500
    assert "a secret" not in reading.answer.body


def test_an_http_exception_is_the_answer(server: Server, client: Client, name: str) -> None:
    reading = client.read(f"{server.url}/conflict/{name}")
    assert reading.committed == ["taken"]
    assert reading.answer.status == 409
    assert reading.answer.json() == {"detail": f"{name} is taken"}
    assert reading.answer.headers["x-name"] == name


def test_no_content_comes_as_200_because_a_response_refuses_a_body_with_204(
    server: Server, client: Client, name: str
) -> None:
    reading = client.read(f"{server.url}/no-content/{name}")
    assert reading.committed == ["gone"]
    assert reading.answer.status == 200
    assert reading.answer.headers["durable-status"] == "204"
    assert reading.answer.body == ""


def test_a_handler_without_steps_streams(server: Server, client: Client, name: str) -> None:
    reading = client.read(f"{server.url}/no-steps/{name}")
    assert reading.calls == [data("a", None), data({"b": [1, None]}, None), commit(None)]
    assert reading.answer.json() == {"name": name}
    assert len(reading.fetches) == 1


def test_a_handler_that_pipes_in_no_step_streams(server: Server, client: Client, name: str) -> None:
    reading = client.read(f"{server.url}/piped/{name}")
    assert reading.committed == ["c", "d"]
    assert reading.answer.json() == "cd"


def test_chunks_outside_steps_come_once_though_the_handler_runs_again(
    server: Server, client: Client, name: str
) -> None:
    reading = client.read(f"{server.url}/outside/{name}")
    assert reading.chunks(None) == ["a", "c", "d", "e"]
    assert reading.committed == ["a", "b", "c", "d", "e"]
    assert reading.answer.json() == name


def test_parallel_steps_are_told_apart(server: Server, client: Client, name: str) -> None:
    reading = client.read(f"{server.url}/parallel/{name}")
    left, right = ("".join(f"{side}{n} " for n in range(20)) for side in "lr")
    assert "".join(reading.chunks("left")) == left
    assert "".join(reading.chunks("right")) == right
    assert len(reading.committed) == 40
    assert reading.answer.json() == [left, right]


@pytest.mark.parametrize("query", ["", "?nap=0.05"], ids=["at once", "after a sleep"])
def test_a_handler_that_streams_nothing_but_reports_answers(
    server: Server, client: Client, name: str, query: str
) -> None:
    reading = client.read(f"{server.url}/quiet/{name}{query}")
    assert [call for call, _ in reading.calls if call != "commit"] == []
    assert reading.answer.status == 200
    assert reading.answer.json() == {"found": name}
    assert reading.answer.headers["content-type"] == "application/json"


def test_an_endpoint_that_does_not_stream_answers_as_ever(
    server: Server, client: Client, name: str
) -> None:
    reading = client.read(f"{server.url}/not-streamed/{name}")
    assert (reading.calls, reading.run_ids) == ([], [])
    assert reading.answer.json() == {"said": "hidden"}
    assert reading.answer.headers["content-type"] == "application/json"


def test_the_redirect_of_an_endpoint_that_does_not_stream_leads_to_the_answer(
    server: Server, client: Client, name: str
) -> None:
    reading = client.read(f"{server.url}/not-streamed/{name}?nap=0.05")
    assert reading.answer.status == 200
    assert reading.answer.json() == {"said": "hidden"}


def test_a_refusal_before_the_handler_is_an_ordinary_response(
    server: Server, client: Client
) -> None:
    reading = client.read(f"{server.url}/number/seven")
    assert (reading.calls, reading.run_ids) == ([], [])
    assert reading.answer.status == 422
    assert reading.answer.json()["detail"][0]["loc"] == ["path", "number"]


def test_values_arrive_as_they_were_pushed(server: Server, client: Client, name: str) -> None:
    reading = client.read(f"{server.url}/echo/{name}", request=posted(VALUES))
    assert reading.chunks("repeat") == VALUES
    assert reading.committed == VALUES
    assert reading.answer.json() == VALUES


def test_a_repeated_request_reads_the_same_stream(
    server: Server, client: Client, name: str
) -> None:
    request = posted(["a", {"b": 2}], key=name)
    first = client.read(f"{server.url}/echo/{name}", request=request)
    again = client.read(f"{server.url}/echo/{name}", request=request)
    assert again.run_ids[0] == first.run_ids[0]
    assert again.calls == first.calls
    assert again.answer == first.answer
    assert httpx.get(f"{server.url}/tries/{name}").json() == 1


@pytest.mark.parametrize("chunks", [1, 2])
def test_the_run_completes_though_the_client_aborts(
    server: Server, client: Client, name: str, chunks: int
) -> None:
    reading = client.read(f"{server.url}/slow/{name}", abortAfter=chunks)
    assert reading.error["name"] == "AbortError"
    assert reading.chunks("dawdle")[:chunks] == ["still ", "there"][:chunks]
    httpx.get(f"{server.url}/open/{name}")
    assert_completes(reading, "finished")


def test_the_run_completes_though_the_client_aborts_behind_the_redirect(
    server: Server, client: Client, name: str
) -> None:
    reading = client.read(f"{server.url}/slow/{name}?nap=0.05", abortAfter=2)
    assert reading.error["name"] == "AbortError"
    assert reading.committed == ["soon "]
    assert reading.chunks("dawdle")[0] == "still "
    assert_one_redirect(reading)
    httpx.get(f"{server.url}/open/{name}")
    assert_completes(reading, "finished")


def test_an_aborted_stream_can_be_read_again_from_its_run(
    server: Server, client: Client, name: str
) -> None:
    aborted = client.read(f"{server.url}/slow/{name}", abortAfter=1)
    httpx.get(f"{server.url}/open/{name}")
    reading = client.read(aborted.run_url)
    assert reading.run_ids == aborted.run_ids
    assert reading.calls == [
        data("still ", "dawdle"),
        data("there", "dawdle"),
        data("?", "dawdle"),
        commit("dawdle"),
        data("finished", "finish"),
        commit("finish"),
    ]
    assert reading.answer.json() == "finished"


def test_a_page_reads_more_streams_at_once_than_it_has_connections(
    server: Server, chromium: Chromium, name: str
) -> None:
    urls = [f"{server.url}/across/{name}-{n}" for n in range(16)]
    for reading in chromium.read_together(urls):
        assert reading.committed == ["one ", "two ", "three ", "four"]
        assert reading.answer.body == "one two three four"


def posted(body: Any, key: str | None = None) -> dict[str, Any]:
    """A request with a JSON body, which a browser asks leave for first."""
    headers = {"content-type": "application/json"}
    if key is not None:
        headers["idempotency-key"] = key
    return {"method": "POST", "headers": headers, "body": json.dumps(body)}


def assert_counts(reading: Reading, to: int) -> None:
    """Whether the client got the numbers below `to`, each once and in order."""
    chunks = [int(value["data"]) for call, value in reading.calls if call == "data"]
    doubled = [number for number, again in Counter(chunks).items() if again > 1]
    lost = sorted(set(range(to)) - set(chunks))
    assert (lost, doubled) == ([], [])
    assert chunks == list(range(to))
    assert len(reading.committed) == to
    assert reading.answer.json() == to


def assert_one_redirect(reading: Reading) -> None:
    """Whether the client went on where `redirect_info` told it to, and found the same run."""
    first, second = reading.fetches
    assert "after=sync" in second["url"]
    assert second["status"] == 200
    assert second["headers"]["content-type"].startswith("text/event-stream")
    assert reading.run_ids == [first["headers"]["durable-run-id"]] * 2


def assert_completes(reading: Reading, body: Any) -> None:
    response = httpx.get(reading.run_url, follow_redirects=True, timeout=20)
    assert response.status_code == 200
    assert response.json() == body
