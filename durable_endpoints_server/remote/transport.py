"""What carries the messages of one connection."""

from __future__ import annotations

from typing import Protocol


class TransportClosedError(Exception):
    """The connection is closed: by whom and why, `code` and `reason` say (RFC 6455 §7.4)."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"the connection is closed: {code} {reason}".rstrip())
        self.code = code
        self.reason = reason


class Transport(Protocol):
    """One end of a connection, for one reader and one writer."""

    async def send(self, message: str) -> None:
        """Send a message. Returns when there is room for the next one.

        Raises `TransportClosedError`.
        """
        ...

    async def receive(self) -> str | bytes:
        """The next message. Raises `TransportClosedError`."""
        ...

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection. What was sent before still arrives."""
        ...
