"""The demo's work: count words, pick key sentences, compose a digest or the request for one.

Plain functions.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_COMMON_LENGTH = 4
"""Words up to this length are mostly grammar and say little of what a text is about."""
_LONGEST_SENTENCE = 500
_LONGEST_EXCERPT = 4_000


def count_words(text: str) -> dict[str, Any]:
    """How many words, how many different ones, and the five most frequent that say something."""
    words = [word.lower() for word in _WORD.findall(text)]
    telling = Counter(word for word in words if len(word) > _COMMON_LENGTH)
    return {
        "words": len(words),
        "different": len(set(words)),
        "frequent": [word for word, _ in telling.most_common(5)],
    }


def pick_key_sentences(text: str, wanted: int = 3) -> list[str]:
    """The sentences whose words are the most frequent of the text, in the order of the text."""
    sentences = [
        " ".join(sentence.split())[:_LONGEST_SENTENCE]
        for sentence in _SENTENCE_END.split(text)
        if sentence.strip()
    ]
    weight = Counter(word for word in _WORD.findall(text.lower()) if len(word) > _COMMON_LENGTH)

    def score(sentence: str) -> float:
        words = _WORD.findall(sentence.lower())
        return sum(weight[word] for word in words) / (len(words) + 8)

    best = set(sorted(sentences, key=score, reverse=True)[:wanted])
    return [sentence for sentence in dict.fromkeys(sentences) if sentence in best]


def compose(counts: dict[str, Any], sentences: list[str]) -> str:
    """The digest as the demo's application writes it into a file."""
    frequent = ", ".join(counts["frequent"]) or "none"
    head = f"{counts['words']:,} words, {counts['different']:,} different. Frequent: {frequent}."
    return "\n".join([head, *(f"- {sentence}" for sentence in sentences)]) + "\n"


def compose_prompt(counts: dict[str, Any], sentences: list[str], text: str) -> str:
    """What a language model is asked for, in a bounded number of characters."""
    parts = [
        "Write a digest of a text, in about 100 words of plain prose, without a heading.",
        f"What was counted, and its key sentences:\n{compose(counts, sentences)}",
        f"How it begins:\n{text[:_LONGEST_EXCERPT]}",
    ]
    return "\n\n".join(parts)
