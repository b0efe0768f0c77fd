"""The demo's terminal: lines with the time and who speaks, a live line at the foot, and checks."""

from __future__ import annotations

import shutil
import sys
import time

import click

_COLOURS = {"client": "cyan", "app": "magenta", "step": None, "demo": "yellow"}
_SPINNER = "|/-\\"


class Screen:
    """Writes to standard output: colours and a live line on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._is_terminal = sys.stdout.isatty()
        self._live = ""
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

    def live(self, text: str) -> None:
        """Replace the live line at the foot; on a terminal only."""
        self._live = text
        if self._is_terminal:
            self._turn += 1
            self._clear()
            width = shutil.get_terminal_size().columns - 1
            click.echo(f"   {_SPINNER[self._turn % len(_SPINNER)]} {text}"[:width], nl=False)

    def _write(self, text: str) -> None:
        if self._live:
            self._clear()
        click.echo(text)
        sys.stdout.flush()

    def _clear(self) -> None:
        if self._is_terminal:
            click.echo("\r\x1b[K", nl=False)
