"""A server in a process of its own: the database, the socket and uvicorn around the application."""

from __future__ import annotations

import asyncio
import gc
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from durable_endpoints.protocol.wire import MAX_MESSAGE
from durable_endpoints_server.app import create_app
from durable_endpoints_server.guard import OwnMachine
from durable_endpoints_server.listening import listen, port_of
from durable_endpoints_server.logs import configure_logging
from durable_endpoints_server.protocols import BoundedHttpProtocol, BoundedWebSocketProtocol
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.location import sqlite_path
from durable_endpoints_server.store.opening import open_database

_KEEP_ALIVE = 75
"""Seconds for which a connection may be idle between requests: applications keep theirs."""
_RESERVED = 100
"""Files that are open beside connections."""
_NEW_OBJECTS = 50_000
"""New objects until the garbage collector looks at them; Python's own number is 700."""


def serve(settings: ServerSettings, announce: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT; `announce` is called with the port once requests are taken.

    Raises `DurableEndpointsError` for a database that cannot be opened (another process may serve
    it: that one is waited for a moment), and a port that cannot be listened at.
    """
    configure_logging(settings.log_format, settings.log_level)
    path = sqlite_path(settings.database)
    database = open_database(path, settings.synchronous, settings.drain_timeout)
    try:
        server = Server(settings, database.store)
        sockets = listen(settings.host, settings.port)
        _calm_collector()
        HttpServer(http_config(server), server, announce).run(sockets)
    finally:
        database.close()


def _calm_collector() -> None:
    """What is there by now stays, and what runs and requests leave behind holds no cycles: the
    garbage collector, which would start after every few requests, need not look at it so often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)


def http_config(server: Server) -> uvicorn.Config:
    """How uvicorn serves it: everything bounded, nothing compressed, and no header trusted."""
    settings = server.settings
    app = create_app(server)
    return uvicorn.Config(
        OwnMachine(app) if settings.dev else app,
        http=BoundedHttpProtocol,
        ws=BoundedWebSocketProtocol,
        ws_max_size=MAX_MESSAGE,
        # A process whose event loop is blocked is alive: it says so from a thread, by HTTP. One
        # whose machine is gone is found by TCP.
        ws_ping_interval=None,
        # No compression, so nothing small can become large.
        ws_per_message_deflate=False,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=min(settings.max_connections, _file_limit() - _RESERVED),
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout / 1_000),
    )


def _file_limit() -> int:
    """How many files this process may have open, after asking for as many as it may ask for."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 2**31
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return 2**31 if soft == resource.RLIM_INFINITY else soft
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class HttpServer(uvicorn.Server):
    """uvicorn, which tells the engine of a stop before it waits for requests to end: those that
    wait for a run would else keep it."""

    def __init__(
        self, config: uvicorn.Config, server: Server, announce: Callable[[int], None]
    ) -> None:
        super().__init__(config)
        self._server = server
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            self._announce(port_of(sockets[0]))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._server.begin_drain()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, this does not raise the signal again: a stop that was asked for, and
        went well, is a success."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
