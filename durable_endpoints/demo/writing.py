"""The demo's writing: a text word by word, slowly enough for eyes, which can fail in its middle."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

_WORD = re.compile(r"\s*\S+\s*")


class MadeUpFailure(Exception):
    """A failure for the demo's sake."""

    def __init__(self) -> None:
        super().__init__("the demo makes the first try fail in its middle")


async def whole(text: str) -> AsyncGenerator[str]:
    """A text that is there already, as a source of one piece."""
    yield text


async def word_by_word(
    pieces: AsyncGenerator[str], pause: float, fails_after: int | None = None
) -> AsyncIterator[str]:
    """The pieces, split where they are longer than a word, with `pause` seconds after each.

    With `fails_after` it raises `MadeUpFailure` behind that many of them, or at the end of a
    shorter text.
    """
    written = 0
    async with aclosing(pieces):
        async for piece in pieces:
            for word in _WORD.findall(piece) or [piece]:
                yield word
                await asyncio.sleep(pause)
                written += 1
                if written == fails_after:
                    raise MadeUpFailure
    if fails_after is not None:
        raise MadeUpFailure


def count(text: str) -> int:
    """How many words a text has."""
    return len(text.split())
