"""Attacks on the WebSocket of applications: bytes after the handshake."""

from __future__ import annotations

import base64
import os
import socket
import struct
from contextlib import suppress

import pytest

from durable_endpoints.protocol import wire
from durable_endpoints.protocol.signing import hashed
from tests.security.attacker import KEY, Attacker

_CLOSE = 8


def open_socket(attacker: Attacker, *headers: str, key: str = KEY) -> tuple[socket.socket, str]:
    """A connection after its handshake, and the head of the answer."""
    lines = [
        f"GET {wire.PATH} HTTP/1.1",
        "host: localhost",
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        f"sec-websocket-key: {base64.b64encode(os.urandom(16)).decode()}",
        f"sec-websocket-protocol: {wire.SUBPROTOCOL}",
        f"authorization: Bearer {hashed(key)}",
        *headers,
    ]
    connection = attacker.connect()
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    head = b""
    while b"\r\n\r\n" not in head and (more := connection.recv(1)):
        head += more
    return connection, head.decode().lower()


def frame(payload: bytes, opcode: int = 1, masked: bool = True, first: int = 0x80) -> bytes:
    """A WebSocket frame (RFC 6455 §5.2), right or wrong."""
    size = len(payload)
    length = bytes([size | masked << 7]) if size < 126 else b"\xfe" + struct.pack("!H", size)
    return bytes([first | opcode]) + length + (b"\0" * 4 if masked else b"") + payload


def closed_with(connection: socket.socket) -> int | None:
    """The code of the close frame that comes; None if the connection ends without one."""
    with connection, connection.makefile("rb") as received, suppress(ConnectionResetError):
        while head := received.read(2):
            size = head[1]
            if size == 126:
                (size,) = struct.unpack("!H", received.read(2))
            payload = received.read(size)
            if head[0] & 0x0F == _CLOSE:
                return int(struct.unpack("!H", payload[:2])[0])
    return None


@pytest.mark.parametrize(
    "sent",
    [
        frame(b"not json"),
        frame(b"[" * 60_000),
        frame(b"[]"),
        frame(b"[[]]"),
        frame(b"[5]"),
        frame(b'[["hello"]]'),
        frame(b'[["hello", {"process": 5, "app": {}}]]'),
        frame(b'[["register", "x", 1, []]]'),
        frame(b"\xff\xfe\xfd"),
        frame(b"\x00\x01", opcode=2),
        frame(b'[["hello"]]', opcode=3),
        frame(b'[["hello"]]', masked=False),
        frame(b'[["hello"]]', first=0xF0),  # reserved bits: compressed, without having agreed
        frame(b"x", opcode=0),  # goes on with nothing
        frame(b"x" * 200, opcode=9),  # a ping that is too long
        b"\x81\xff" + struct.pack("!Q", 2**62) + b"\0" * 4,
        b"\x81\xff" + struct.pack("!Q", 2**63 + 1) + b"\0" * 4,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=range(18),
)
def test_garbage_ends_the_connection_and_nothing_else(attacker: Attacker, sent: bytes) -> None:
    connection, head = open_socket(attacker)
    assert head.startswith("http/1.1 101")
    connection.sendall(sent)
    assert closed_with(connection) in (1002, 1003, 1007, 1008, 1009)
    assert attacker.ask("GET", "/ready").status == 200


def test_nothing_is_compressed(attacker: Attacker) -> None:
    connection, head = open_socket(attacker, "sec-websocket-extensions: permessage-deflate")
    with connection:
        assert head.startswith("http/1.1 101")
        assert "permessage-deflate" not in head


@pytest.mark.parametrize(
    "header",
    ["sec-websocket-version: 99", "sec-websocket-key: short", "content-length: 5"],
)
def test_a_handshake_that_is_none_opens_nothing(attacker: Attacker, header: str) -> None:
    connection, head = open_socket(attacker, header)
    with connection:
        assert head[9:12] in ("", "400", "426")
        assert b"" in (connection.recv(1_000), connection.recv(1_000))  # it is closed


def test_a_refusal_fills_no_log(attacker: Attacker, caplog: pytest.LogCaptureFixture) -> None:
    connection, head = open_socket(attacker, key="wrong")
    with connection:
        assert head.startswith("http/1.1 401")
        while connection.recv(1_000):
            pass
    assert caplog.records == []
