"""What a mistake of the corpus is: some code, and what must be said about it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

HERE = "# here"
"""Marks the line that the message must name."""


class Mistake(NamedTuple):
    """One plausible mistake, and what the error must say: what happened, and what to do."""

    code: Callable[..., Any]
    says: tuple[str, ...]

    def __str__(self) -> str:
        return self.code.__name__

    @property
    def place(self) -> str:
        """The line that is to be named, as errors spell it, without the function."""
        lines, first = inspect.getsourcelines(self.code)
        marked = [first + n for n, line in enumerate(lines) if HERE in line]
        return f"{inspect.getsourcefile(self.code)}:{marked[0]}" if marked else ""


class Corpus:
    """Mistakes of one kind."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []

    def says(self, *says: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorates the code of a mistake."""

        def add(code: Callable[..., Any]) -> Callable[..., Any]:
            self.mistakes.append(Mistake(code, says))
            return code

        return add


def assert_told(mistake: Mistake, text: str) -> None:
    """Whether the text says everything that it must."""
    for part in (*mistake.says, mistake.place):
        assert part in text, f"{mistake} is told without {part!r}:\n{text}"
