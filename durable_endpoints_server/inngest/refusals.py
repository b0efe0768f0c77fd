"""What is refused to an SDK, in the words of its wire."""

from __future__ import annotations


class Refusal(Exception):
    """A request that cannot be carried out: the HTTP status, what happened and what to do, and a
    word for programs."""

    def __init__(self, status: int, message: str, code: str, data: object = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.data = data


class MalformedError(Refusal):
    """The request is not what the wire allows."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message, "malformed")
