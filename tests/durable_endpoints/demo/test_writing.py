from __future__ import annotations

import pytest

from durable_endpoints.demo.writing import MadeUpFailure, count, whole, word_by_word

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("text", ["One two.\n- three\n", "  led by blanks", "word", " \n "])
async def test_the_words_are_the_text(text: str) -> None:
    words = [word async for word in word_by_word(whole(text), pause=0)]
    assert "".join(words) == text
    assert len(words) == max(1, count(text))


@pytest.mark.parametrize(
    ("fails_after", "written"), [(1, "one "), (2, "one two "), (9, "one two three")]
)
async def test_it_fails_behind_a_word_or_at_the_end(fails_after: int, written: str) -> None:
    words: list[str] = []
    with pytest.raises(MadeUpFailure):
        async for word in word_by_word(whole("one two three"), 0, fails_after):
            words.append(word)
    assert "".join(words) == written
