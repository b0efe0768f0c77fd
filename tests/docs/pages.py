"""The pages of the documentation, and the code blocks in them.

A page's ```python blocks are one program: each builds on those above it. What a reader need not see
stands in HTML comments:

    <!-- python          code that runs at this place: stand-ins, and checks of what the page claims
    assert …
    -->
    <!-- in a handler -->    the next block is the inside of a durable handler
    <!-- start over -->      the next block begins a new program
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = ROOT / "docs" / "reference.md"
"""Signatures are no program."""

_PARTS = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^ *```$"
    r"|^<!-- python\n(?P<hidden>.*?)^-->$"
    r"|^<!-- (?P<mark>in a handler|start over) -->$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A piece of code in a page."""

    language: str
    line: int
    """Where its first line stands in the page, from 1."""
    code: str
    in_handler: bool = False
    starts_over: bool = False


def name_of(page: Path) -> str:
    """The page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    """All code of a page, hidden Python included, in its order."""
    text = page.read_text("utf-8")
    marks: set[str] = set()
    for part in _PARTS.finditer(text):
        if part["mark"]:
            marks.add(part["mark"])
            continue
        hidden = part["hidden"] is not None
        code = part["hidden"] if hidden else part["code"]
        line = text.count("\n", 0, part.start()) + 2
        if hidden:
            yield Block("python", line, code, starts_over="start over" in marks)
            marks.discard("start over")
        else:
            yield Block(
                part["language"],
                line,
                textwrap.dedent(code),
                "in a handler" in marks,
                "start over" in marks,
            )
            marks.clear()
