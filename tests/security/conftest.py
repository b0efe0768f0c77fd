from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from durable_endpoints_server import guard, protocols
from durable_endpoints_server.listening import listen, port_of
from durable_endpoints_server.server import Server
from durable_endpoints_server.serving import HttpServer, http_config
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.memory import MemoryStore
from tests.security.attacker import EVENT_KEY, KEY, OLD_KEY, Attacker


@pytest.fixture(scope="module")
def attacker() -> Iterator[Attacker]:
    """Somebody who reaches a real server, whose patience is short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocols, "HEAD_TIMEOUT", 0.3)
        patch.setattr(protocols, "LINGER", 0.3)
        patch.setattr(guard, "_SILENCE", 0.3)
        settings = ServerSettings(
            signing_keys=(KEY, OLD_KEY), event_keys=(EVENT_KEY,), max_connections=50
        )
        with served(settings) as port:
            yield Attacker(port)


class InThread(HttpServer):
    """Signals come to the main thread only."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class served:
    """A server in a thread of this process."""

    def __init__(self, settings: ServerSettings) -> None:
        server = Server(settings, MemoryStore())
        self._uvicorn = InThread(http_config(server), server, lambda _: None)
        self._sockets: list[socket.socket] = listen("127.0.0.1", 0)
        self._thread = threading.Thread(target=self._uvicorn.run, args=(self._sockets,))

    def __enter__(self) -> int:
        port = port_of(self._sockets[0])
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self._uvicorn.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return port

    def __exit__(self, *_: object) -> None:
        self._uvicorn.should_exit = True
        self._thread.join()
