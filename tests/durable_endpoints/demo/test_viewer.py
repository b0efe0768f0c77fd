"""What is on the screen while a text is streamed, withdrawn and written again."""

from __future__ import annotations

import sys

import click
import pytest

from durable_endpoints.client import Chunk, Commit, Metadata, Rollback, StreamEvent
from durable_endpoints.demo.screen import Screen
from durable_endpoints.demo.viewer import Viewer


def written(*words: str) -> list[Chunk]:
    return [Chunk(word, "step", str(at)) for at, word in enumerate(words, 1)]


def shown(viewer: Viewer) -> str:
    return " ".join(click.unstyle(line).strip() for line in viewer.area(80))


def test_elsewhere_than_on_a_terminal_only_ends_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    viewer = Viewer(Screen())
    events: list[StreamEvent] = [
        Metadata("R"),
        Commit("another step", "1"),
        *written("one ", "two "),
        Rollback("step", "4"),
        *written("one ", "two ", "three"),
        Commit("step", "8"),
    ]
    for event in events:
        viewer.feed(event)
    told = [line.split("client  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert told == ["withdrawn: 2 words (position 4)", "committed: 3 words (position 8)"]
    assert viewer.withdrawn == ["one two "]
    assert viewer.committed_text == "one two three"


def test_the_text_grows_disappears_and_grows_again(monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = Viewer(Screen())
    now = 100.0
    monkeypatch.setattr("durable_endpoints.demo.viewer.time.monotonic", lambda: now)
    assert viewer.area(80) == []
    for chunk in written("one ", "two "):
        viewer.feed(chunk)
    assert shown(viewer) == "one two"
    viewer.feed(Rollback("step", "3"))
    assert viewer.area(80) == [f"          {click.style('one two', fg='red', strikethrough=True)}"]
    now += 1
    assert viewer.area(80) == []
    viewer.feed(Chunk("one", "step", "4"))
    assert shown(viewer) == "one"
    viewer.feed(Commit("step", "5"))
    assert shown(viewer) == "one"


def test_a_long_text_is_shown_by_its_end_and_moves_no_cursor() -> None:
    viewer = Viewer(Screen())
    viewer.feed(Chunk("word " * 1_000 + "\x1b[2J\r\nlast", "step", "1"))
    lines = [click.unstyle(line) for line in viewer.area(60)]
    assert len(lines) == 6
    assert all(len(line) < 60 for line in lines)
    assert lines[-1].endswith("[2J  last")


def test_on_a_terminal_the_live_area_is_replaced_and_makes_room_for_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    screen = Screen()
    screen.live("working", ["a text", "of two lines"])
    assert capsys.readouterr().out.endswith("working\na text\nof two lines\x1b[?7h")
    screen.live("working")
    assert capsys.readouterr().out.startswith("\r\x1b[2A\x1b[J")
    screen.plain("a line")
    assert capsys.readouterr().out == "\r\x1b[Ja line\n"
    screen.live("")
    assert "working" not in capsys.readouterr().out
