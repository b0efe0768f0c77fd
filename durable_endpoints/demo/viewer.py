"""The demo's viewer: the streamed text on the screen, which grows, disappears and grows again."""

from __future__ import annotations

import textwrap
import time
from typing import Any

import click

from durable_endpoints.client import Commit, Rollback, StreamEvent, Transcript
from durable_endpoints.demo.screen import Screen
from durable_endpoints.demo.writing import count

_LINES = 6
"""Of the text's end, in the live area."""
_AFTERGLOW = 0.25
"""Seconds for which a withdrawn text is shown struck through, before it disappears."""


class Viewer:
    """Feed it every event of one stream."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._transcript = Transcript()
        self._withdrawn_at = 0.0
        self.withdrawn: list[str] = []
        """The texts that were withdrawn, in their order."""

    def feed(self, event: StreamEvent) -> None:
        """Take in one event; a commit and a withdrawal are told on a line of their own."""
        before, open_before = self._transcript.text, self.open_text
        self._transcript.feed(event)
        if isinstance(event, Rollback) and self._transcript.text != before:
            self.withdrawn.append(open_before)
            self._withdrawn_at = time.monotonic()
            self._say(f"withdrawn: {count(open_before)} words", event, "red")
        elif isinstance(event, Commit) and open_before:
            self._say(f"committed: {count(self.committed_text)} words", event, "green")

    @property
    def committed_text(self) -> str:
        """What is permanent."""
        return self._transcript.committed_text

    @property
    def open_text(self) -> str:
        """What can still be withdrawn. (In the demo one step streams, and commits once.)"""
        return self._transcript.text.removeprefix(self.committed_text)

    def area(self, columns: int) -> list[str]:
        """The end of the text for the live area, in lines of at most so many characters."""
        if self.open_text:
            return _lines(self.open_text, columns, fg="cyan")
        if self.committed_text:
            return _lines(self.committed_text, columns, fg="green")
        if self.withdrawn and time.monotonic() < self._withdrawn_at + _AFTERGLOW:
            return _lines(self.withdrawn[-1], columns, fg="red", strikethrough=True)
        return []

    def _say(self, text: str, event: Commit | Rollback, colour: str) -> None:
        self._screen.say("client", f"{text} (position {event.position})", colour)


def _lines(text: str, columns: int, **style: Any) -> list[str]:
    # What a model writes shall move no cursor.
    harmless = "".join(character if character.isprintable() else " " for character in text)
    wrapped = textwrap.wrap(harmless, max(20, columns - 12))[-_LINES:]
    return [f"          {click.style(line, **style)}" for line in wrapped]
