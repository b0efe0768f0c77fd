"""Text out of what a source yields: pieces of text, bytes cut anywhere, a provider's events."""

from __future__ import annotations

import codecs
from typing import Any

from durable_endpoints.errors import TruncatedStreamError, UsageError

_PROVIDERS = ("openai", "anthropic")
"""Packages whose streams are known by their class, before the first item has come."""
_COMPLETE = ("response.completed", "response.incomplete", "message_stop")


class Text:
    """Makes text of the items of one source."""

    __slots__ = ("_decoder", "_half", "_is_complete", "_is_provider")

    def __init__(self, source: Any) -> None:
        self._decoder: codecs.IncrementalDecoder | None = None
        self._half = ""
        """The first half of a character that a provider has cut in two (UTF-16 surrogates)."""
        package = type(source).__module__.partition(".")[0]
        self._is_provider = package in _PROVIDERS
        self._is_complete = False

    def of(self, item: Any) -> str:
        """The text of one item, which is empty if the item has none."""
        if isinstance(item, str):
            return self._joined(str(item))
        if isinstance(item, bytes | bytearray | memoryview):
            # A character may be split between two items.
            if self._decoder is None:
                self._decoder = codecs.getincrementaldecoder("utf-8")()
            return self._decoder.decode(bytes(item))
        return self._joined(self._of_provider(item))

    def end(self) -> str:
        """What is left. Raises if the source was cut off."""
        if self._is_provider and not self._is_complete:
            raise TruncatedStreamError(
                "the provider's stream ended before the provider said that it was complete"
            )
        if self._decoder is not None:
            self._decoder.decode(b"", final=True)
        return "\N{REPLACEMENT CHARACTER}" if self._half else ""

    def _joined(self, text: str) -> str:
        if self._half:
            text, self._half = self._half + text, ""
        if text.isascii():
            return text
        if "\ud800" <= text[-1] <= "\udbff":
            self._half, text = text[-1], text[:-1]
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return text

    def _of_provider(self, item: Any) -> str:
        """An item of OpenAI's chat completions, or an event of its helper for them, of its
        responses, or of Anthropic's messages."""
        self._is_provider = True
        choices = getattr(item, "choices", None)
        if isinstance(choices, list):
            return self._of_choices(choices)
        kind = getattr(item, "type", None)
        if not isinstance(kind, str):
            raise UsageError(
                f"stream.pipe got a {type(item).__name__} from its source: it takes text, bytes, "
                "and the streams of OpenAI's and Anthropic's clients; for anything else iterate "
                "yourself, and stream.push() what readers shall get"
            )
        if kind == "chunk" and hasattr(item, "chunk"):
            return self._of_provider(item.chunk)
        if kind in ("response.failed", "error"):
            failed = getattr(item, "response", item)
            raise TruncatedStreamError(
                f"the provider ended its stream with an error: {getattr(failed, 'error', failed)}"
            )
        self._is_complete |= kind in _COMPLETE
        delta = getattr(item, "delta", None)
        if kind == "response.output_text.delta" and isinstance(delta, str):
            return delta
        if kind == "content_block_delta":
            return getattr(delta, "text", None) or ""
        return ""

    def _of_choices(self, choices: list[Any]) -> str:
        """The first of the answers that were asked for."""
        text = ""
        for choice in choices:
            if getattr(choice, "index", 0) == 0:
                text += getattr(getattr(choice, "delta", None), "content", None) or ""
                self._is_complete |= getattr(choice, "finish_reason", None) is not None
        return text
