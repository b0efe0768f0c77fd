"""The demo's terminal: lines with the time and who speaks, a live area at the foot, and checks."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence

import click

_COLOURS = {"client": "cyan", "app": "magenta", "step": None, "demo": "yellow"}
_SPINNER = "|/-\\"


class Screen:
    """Writes to standard output: colours and a live area on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._is_terminal = sys.stdout.isatty()
        self._height = 0  # of what stands in the live area
        self._turn = 0
        self.failures = 0

    def title(self, text: str) -> None:
        """A heading; the clock starts anew."""
        self._began = time.monotonic()
        self._write(click.style(f"\n{text}", bold=True))

    def plain(self, text: str = "") -> None:
        """A line as it is."""
        self._write(text)

    def say(self, who: str, text: str, colour: str | None = None) -> None:
        """A line of what just happened."""
        seconds = time.monotonic() - self._began
        speaker = click.style(f"{who:<7}", fg=_COLOURS[who], bold=who != "step")
        self._write(f"{seconds:7.2f}s  {speaker} {click.style(text, fg=colour)}")

    def check(self, holds: bool, text: str) -> None:
        """A line of the summary."""
        mark = click.style("ok ", fg="green") if holds else click.style("NOT", fg="red", bold=True)
        self.failures += not holds
        self._write(f"  {mark}  {text}")

    @property
    def columns(self) -> int:
        """The width of the terminal."""
        return shutil.get_terminal_size().columns

    def live(self, text: str, below: Sequence[str] = ()) -> None:
        """Replace the live area by a line of `text` and the lines `below`, by nothing if there is
        no text; on a terminal only."""
        if not self._is_terminal:
            return
        self._turn += 1
        lines = [f"   {_SPINNER[self._turn % len(_SPINNER)]} {text}", *below] if text else []
        lines = lines[: max(1, shutil.get_terminal_size().lines - 1)]
        # Without wrapping: a line that is wider than it was taken for stays one line.
        shown = f"\x1b[?7l{chr(10).join(lines)}\x1b[?7h"
        click.echo(self._clearing() + shown, nl=False)
        sys.stdout.flush()
        self._height = len(lines)

    def _write(self, text: str) -> None:
        click.echo(self._clearing() + text)
        sys.stdout.flush()
        self._height = 0

    def _clearing(self) -> str:
        """What removes the live area, and leaves the cursor where that began."""
        if not self._height:
            return ""
        up = f"\x1b[{self._height - 1}A" if self._height > 1 else ""
        return f"\r{up}\x1b[J"
