"""Questions to a server, and what becomes of them when the link breaks: they are asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from durable_endpoints.engines.remote.link import Link
from durable_endpoints.errors import (
    EngineClosedError,
    EngineError,
    LimitError,
    LostRunError,
    StorageError,
)
from durable_endpoints.protocol.wire import Frame

_ERRORS: dict[str, type[EngineError] | type[LimitError]] = {
    "closed": EngineClosedError,
    "lost": LostRunError,
    "limit": LimitError,
}


def error_of(code: str, message: str) -> EngineError | LimitError:
    """The error that the server tells by a word."""
    return _ERRORS.get(code, StorageError)(message)


class ReleasedError(Exception):
    """Nobody shall wait for the answer any more: this process is about to end."""


class _Question:
    __slots__ = ("answer", "frame", "is_releasable")

    def __init__(self, frame: Frame, answer: asyncio.Future[Any], is_releasable: bool) -> None:
        self.frame = frame
        self.answer = answer
        self.is_releasable = is_releasable


class Questions:
    """Those that one event loop has asked."""

    def __init__(self, numbers: Iterator[int]) -> None:
        """`numbers` gives those that nothing else has that is asked."""
        self._asked: dict[int, _Question] = {}
        self._numbers = numbers

    async def ask(
        self,
        link: Link,
        what: str,
        about: dict[str, Any],
        patience: float,
        too_late: EngineError,
        is_releasable: bool = False,
    ) -> Any:
        """The answer. Raises `too_late` after `patience` seconds, `ReleasedError` for a question
        that is released, and what the server failed with."""
        number = next(self._numbers)
        loop = asyncio.get_running_loop()
        question = _Question(["ask", number, what, about], loop.create_future(), is_releasable)
        self._asked[number] = question
        timer = loop.call_later(patience, _fail, question.answer, too_late)
        link.say(question.frame)
        try:
            return await question.answer
        finally:
            timer.cancel()
            if self._asked.pop(number, None) is not None:
                link.say(["forget", number])

    def answered(self, number: int, value: Any) -> None:
        """The server has answered."""
        question = self._asked.pop(number, None)
        if question is not None and not question.answer.done():
            question.answer.set_result(value)

    def failed(self, number: int, error: EngineError | LimitError) -> None:
        """The server cannot answer."""
        question = self._asked.pop(number, None)
        if question is not None:
            _fail(question.answer, error)

    def again(self) -> list[Frame]:
        """What to ask on a new link."""
        return [question.frame for question in self._asked.values()]

    def release(self) -> None:
        """Let go of everybody who waits for what may take long."""
        for question in self._asked.values():
            if question.is_releasable:
                _fail(question.answer, ReleasedError())


def _fail(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
