"""The sockets that a server listens at."""

from __future__ import annotations

import errno
import socket

from durable_endpoints.protocol.errors import ConfigurationError

_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""How the operating system finds that the machine at the other end is gone, in seconds. It answers
for a process that is busy, which a ping of the application would take for dead."""
_TAKEN = "another program has this port: stop it, or choose another with --port"
_REMEDIES = {
    errno.EADDRINUSE: _TAKEN,
    errno.EACCES: "this user may not listen there: choose a port above 1023 with --port",
    errno.EADDRNOTAVAIL: "this machine has no such address: choose one of its own with --host, "
    "127.0.0.1 for callers on it, or 0.0.0.0 for any",
}


def listen(host: str, port: int) -> list[socket.socket]:
    """Bind `port` of every address that `host` means; they accept once somebody serves them.

    Port 0 becomes one that is free. Raises `ConfigurationError`, saying what to do.
    """
    sockets: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            listener = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _keep_alive(listener)
            if family is socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            chosen = port or port_of(sockets[0])
            listener.bind((address, chosen))
    except OSError as error:
        for listener in sockets:
            listener.close()
        remedy = _REMEDIES.get(error.errno or 0, "choose another place with --host and --port")
        raise ConfigurationError(
            f"cannot listen at {host}:{port} ({error.strerror}): {remedy}"
        ) from None
    return sockets


def port_of(listener: socket.socket) -> int:
    """The port it is bound to; 0 if it is not yet."""
    port: int = listener.getsockname()[1]
    return port


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((line[0], str(line[4][0])) for line in found))


def _keep_alive(listener: socket.socket) -> None:
    """What is accepted inherits it."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in _KEEPALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            listener.setsockopt(socket.IPPROTO_TCP, option, seconds)
