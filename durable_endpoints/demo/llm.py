"""The demo's language model: any server of OpenAI's chat completions, asked with plain httpx."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx

from durable_endpoints.client.frames import Frame, FrameParser
from durable_endpoints.errors import NonRetriableError, TruncatedStreamError

_TIMEOUT = httpx.Timeout(10, read=60)
_PASSING = (408, 409, 425, 429)
"""Statuses below 500 that may be others a moment later."""
_LONGEST_REASON = 300


class LlmError(Exception):
    """The server did not do its part. Another try may help."""


@dataclass(frozen=True)
class Llm:
    """A model, and where it is served: `url` is what `/chat/completions` is put behind."""

    url: str
    model: str
    key: str = field(default="", repr=False)

    async def write(self, prompt: str) -> AsyncGenerator[str]:
        """The model's answer as it comes.

        Raises `LlmError` or `TruncatedStreamError` when another try may help, `NonRetriableError`
        when it would not: a wrong URL, key or model.
        """
        url = f"{self.url.rstrip('/')}/chat/completions"
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        messages = [{"role": "user", "content": prompt}]
        body = {"model": self.model, "messages": messages, "stream": True}
        try:
            async with (
                httpx.AsyncClient(timeout=_TIMEOUT) as client,
                client.stream("POST", url, json=body, headers=headers) as response,
            ):
                await _check(response, url)
                async with aclosing(texts(response.aiter_bytes())) as pieces:
                    async for piece in pieces:
                        yield piece
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise NonRetriableError(f"{url} is no URL to ask: {error}") from None
        except (httpx.LocalProtocolError, UnicodeEncodeError):  # which would show the key
            raise NonRetriableError(f"{url}: the key cannot be sent in a header") from None
        except httpx.HTTPError as error:
            raise LlmError(f"{url}: {error or type(error).__name__}") from None


async def texts(body: AsyncIterable[bytes]) -> AsyncGenerator[str]:
    """The pieces of text in the body of a streamed chat completion, which may come cut anywhere.

    Raises `TruncatedStreamError` when it ends with neither a `finish_reason` nor `[DONE]`, and
    `LlmError` for what is no chat completion, for an error in its middle, and for an empty answer.
    """
    # Not `aiter_lines()`: to httpx a line also ends at U+2028, which may stand in JSON.
    parser = FrameParser()
    is_complete = is_over = False
    is_empty = True
    async for data in body:
        for frame in parser.feed(data):
            if not isinstance(frame, Frame):  # a sign of life
                continue
            if frame.data == "[DONE]":
                is_complete = is_over = True
                continue
            text, is_last = _read(frame.data)
            is_complete |= is_last
            if text:
                is_empty = False
                yield text
        if is_over:
            break
    if not is_complete:
        raise TruncatedStreamError("the model's answer ended before its end")
    if is_empty:
        raise LlmError("the model's answer is empty")


def _read(data: str) -> tuple[str, bool]:
    """A chunk's text, and whether the answer ends with it."""
    try:
        # Not orjson: there are servers that cut a character into two surrogates.
        chunk = json.loads(data)
        if chunk.get("error"):
            raise LlmError(_reason(chunk))
        choice = (chunk.get("choices") or [{}])[0]
        text = (choice.get("delta") or {}).get("content") or ""
        if not isinstance(text, str):
            raise TypeError(text)
    except (ValueError, AttributeError, TypeError, LookupError):
        raise LlmError(f"{data[:_LONGEST_REASON]!r} is no chunk of a chat completion") from None
    return text, choice.get("finish_reason") is not None


async def _check(response: httpx.Response, url: str) -> None:
    """Raise unless it is a stream."""
    content_type = response.headers.get("content-type", "")
    if response.status_code == 200 and content_type.startswith("text/event-stream"):
        return
    if response.status_code == 200:
        raise NonRetriableError(f"{url} answered {content_type or 'nothing'}, not an event stream")
    reason = _reason_in(await response.aread())
    message = f"{url} answered {response.status_code} {response.reason_phrase}: {reason}"
    if response.status_code in _PASSING or response.status_code >= 500:
        raise LlmError(message)
    raise NonRetriableError(message)


def _reason_in(body: bytes) -> str:
    try:
        return _reason(json.loads(body))
    except (ValueError, AttributeError):
        return body.decode("utf-8", "replace")[:_LONGEST_REASON].strip() or "without a reason"


def _reason(answer: dict[str, Any]) -> str:
    """What an answer `{"error": {"message": …}}`, or one that is nearly that, says."""
    error = answer.get("error", answer)
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:_LONGEST_REASON]
