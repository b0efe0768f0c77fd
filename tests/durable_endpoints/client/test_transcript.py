from __future__ import annotations

from durable_endpoints.client import (
    Chunk,
    Commit,
    Log,
    Metadata,
    Progress,
    Rollback,
    StreamEvent,
    Transcript,
)


def transcript(*events: StreamEvent) -> Transcript:
    made = Transcript()
    for event in events:
        made.feed(event)
    return made


def test_steps_that_stream_at_once_are_told_apart() -> None:
    made = transcript(
        Metadata("R"),
        Chunk("a1", "A", "1"),
        Chunk("b1", "B", "2"),
        Chunk("out", None, "3"),
        Commit("B", "4"),
        Chunk("a2", "A", "5"),
        Chunk("b2", "B", "6"),
        Rollback("A", "7"),
        Chunk("a3", "A", "8"),
        Commit("A", "9"),
    )
    assert made.text == "b1outb2a3"
    assert made.committed_text == "b1a3"
    made.feed(Rollback("B", "10"))
    assert made.text == "b1outa3"
    made.feed(Rollback(None, "11"))
    assert [chunk.position for chunk in made.chunks] == ["2", "8"]
    assert made.chunks == made.committed_chunks


def test_what_is_committed_stays() -> None:
    made = transcript(Chunk("x", "A", "1"), Commit("A", "2"), Rollback("A", "3"), Commit("A", "4"))
    assert made.text == made.committed_text == "x"


def test_ends_of_steps_that_streamed_nothing() -> None:
    assert transcript(Commit("A", "1"), Rollback(None, "2")).text == ""


def test_text_is_of_the_texts_only() -> None:
    made = transcript(
        Chunk("a", None, "1"),
        Chunk({"n": 1}, None, "2"),
        Progress(1, 2, "half", None, "3"),
        Log("info", "line", {}, 0, None, "4"),
        Chunk("b", None, "5"),
    )
    assert made.text == "ab"
    assert [chunk.data for chunk in made.chunks] == ["a", {"n": 1}, "b"]
