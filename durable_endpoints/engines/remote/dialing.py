"""Opening a connection to a server: the WebSocket, what opens the server, and what its refusals
mean."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Sequence
from typing import Literal, Protocol
from urllib.parse import urlsplit

import websockets.exceptions
from websockets.asyncio.client import connect

from durable_endpoints.engines.remote.socket import Socket
from durable_endpoints.errors import ForeignServerError
from durable_endpoints.protocol import signing, wire
from durable_endpoints.settings import Settings

_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_OPEN_TIMEOUT = 10.0
"""Seconds in which a connection is open, or counts as refused."""
_CLOSE_TIMEOUT = 1.0
_PING = 10.0
"""Seconds between two signs of life that the server is asked for, and for which one may take."""
REFUSED_KEY = (401, 403)
"""Statuses of a server that does not take the key that it was shown."""
PASSING = (408, 425, 429)
"""Statuses below 500 that say: try again later."""
_UPGRADE_REQUIRED = 426
_NO_UPGRADE = (
    "what arrives there is no WebSocket: let the proxy before it pass on the headers Upgrade and "
    "Connection"
)


class LostConnectionError(Exception):
    """The connection cannot be opened, or is gone: it may be opened again."""


class Connection(Protocol):
    """One open connection, which carries messages. Both methods raise `LostConnectionError`."""

    async def send(self, message: bytes) -> None:
        """Send one message. Returns when the connection takes more."""
        ...

    async def receive(self) -> bytes | str:
        """The next message."""
        ...

    async def close(self) -> None:
        """Nothing more is said. Messages that were sent arrive."""
        ...


class Dial(Protocol):
    """Opens connections. Raises `LostConnectionError` and `ForeignServerError`."""

    async def __call__(self) -> Connection: ...


class Keys:
    """The signing keys of an application, as it shows them to a server."""

    def __init__(self, settings: Settings) -> None:
        given = (settings.signing_key, settings.signing_key_fallback)
        self._keys: Sequence[str] = [key for key in given if key] or [""]
        self._current = 0

    def headers(self) -> dict[str, str]:
        """Those that open the server; none where no key is set."""
        key = self._keys[self._current]
        return {"Authorization": f"Bearer {signing.hashed(key)}"} if key else {}

    @property
    def are_set(self) -> bool:
        """Whether there is a key to show."""
        return self._keys != [""]

    def tries(self) -> range:
        """As often as a refused key may be followed by the other one."""
        return range(len(self._keys))

    def turn(self) -> None:
        """The key was refused: show the other one from now on. In the middle of a rotation, a
        server may know one of them only."""
        self._current = (self._current + 1) % len(self._keys)


def is_local(url: str) -> bool:
    """Whether a server is on this machine."""
    host = urlsplit(url).hostname or ""
    return host in _LOCAL or host.startswith("127.")


class WebSocketDial:
    """Dials the server at `url`, an `http://` or `https://` one."""

    def __init__(self, url: str, keys: Keys) -> None:
        self._base = url
        self._url = f"ws{url.removeprefix('http')}{wire.PATH}"
        self._keys = keys
        # A proxy that the environment names for the world outside cannot reach this machine.
        self._proxy: Literal[True] | None = None if is_local(url) else True

    async def __call__(self) -> Connection:
        status = 0
        for _ in self._keys.tries():
            try:
                return _WebSocket(await self._connect())
            except websockets.exceptions.InvalidStatus as error:
                status = error.response.status_code
                if status == _UPGRADE_REQUIRED:
                    raise LostConnectionError(_NO_UPGRADE) from None
                if status < 500 and status not in (*REFUSED_KEY, *PASSING):
                    # 404, or 200 with a page: whatever it is, it knows no such address.
                    raise ForeignServerError(
                        f"the server answers {status} at {wire.PATH}"
                    ) from None
                if status not in REFUSED_KEY:
                    raise LostConnectionError(f"the server answers {status}") from None
                self._keys.turn()
            except (OSError, TimeoutError, websockets.exceptions.WebSocketException) as error:
                raise LostConnectionError(self._explained(error)) from None
        raise LostConnectionError(self._refusal(status))

    def _explained(self, error: Exception) -> str:
        """What keeps a connection from being opened, and where it is looked for."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({error.verify_message})"
        if isinstance(error, ssl.SSLError) and self._base.startswith("https:"):
            return (
                "TLS does not begin there. If it speaks plain HTTP, as it does without a proxy, "
                "its URL begins with http://"
            )
        if isinstance(error, websockets.exceptions.InvalidMessage):
            return "what answers there is no server of durable endpoints, or wants https://"
        if isinstance(error, socket.gaierror):
            return error.strerror or "its name is unknown"
        if isinstance(error, OSError):
            # Not asyncio's own text: that has the address, which is nothing for clients to see.
            return os.strerror(error.errno).lower() if error.errno else "nobody answers there"
        return str(error) or type(error).__name__

    def _refusal(self, status: int) -> str:
        """Why all keys were refused. This SDK's server says 401; 403 is what others say, also those
        that have no such address."""
        if status == 403 and urlsplit(self._base).path:
            return (
                f"it answers 403 at {wire.PATH}. A server's URL has no path: set "
                "DURABLE_ENDPOINTS_SERVER_URL to scheme, host and port"
            )
        if status == 403:
            return (
                f"it answers 403 at {wire.PATH}: is that a server of durable endpoints, and not an "
                "application, or a proxy that lets nobody in?"
            )
        if not self._keys.are_set:
            return "it wants a signing key: set DURABLE_ENDPOINTS_SIGNING_KEY to one of its own"
        return (
            "the server refuses the signing key: set DURABLE_ENDPOINTS_SIGNING_KEY to one of its "
            "own"
        )

    async def _connect(self) -> Socket:
        socket = await connect(
            self._url,
            create_connection=Socket,
            subprotocols=[wire.SUBPROTOCOL],  # type: ignore[list-item]
            additional_headers=self._keys.headers(),
            compression=None,
            proxy=self._proxy,
            open_timeout=_OPEN_TIMEOUT,
            close_timeout=_CLOSE_TIMEOUT,
            # So that a server that is gone without a word is noticed.
            ping_interval=_PING,
            ping_timeout=_PING,
            max_size=wire.MAX_MESSAGE,
        )
        assert isinstance(socket, Socket)
        return socket


class _WebSocket:
    """A WebSocket as a `Connection`."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket

    async def send(self, message: bytes) -> None:
        try:
            await self._socket.say(message)
        except (websockets.exceptions.ConnectionClosed, OSError) as error:
            raise LostConnectionError(str(error)) from None

    async def receive(self) -> bytes | str:
        try:
            return await self._socket.hear()
        except websockets.exceptions.ConnectionClosed as error:
            raise LostConnectionError(str(error)) from None

    async def close(self) -> None:
        await asyncio.shield(self._socket.close())
