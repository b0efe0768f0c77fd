"""Attacks on the HTTP server itself: bytes on a socket."""

from __future__ import annotations

import gzip
import time
from contextlib import ExitStack

import pytest

from tests.security.attacker import KEY, Attacker

AUTHORISED = f"authorization: Bearer {KEY}\r\n".encode()


def test_a_head_that_never_ends_is_given_up(attacker: Attacker) -> None:
    """Slow-loris: a byte now and then keeps no connection."""
    answer = attacker.send(*[b"GET / HTTP/1.1\r\n", *[b"x: y\r\n"] * 5], pause=0.15)
    assert answer.status == 0
    silent = attacker.send(b"")
    assert (silent.status, silent.elapsed < 2) == (0, True)


def test_the_second_head_on_a_connection_has_no_more_time(attacker: Attacker) -> None:
    request = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
    answer = attacker.send(request, b"GET /hea", pause=0.05)
    assert (answer.status, answer.elapsed < 2) == (200, True)


def test_a_body_that_does_not_come_is_given_up(attacker: Attacker) -> None:
    head = b"POST /e/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n"
    answer = attacker.send(head + AUTHORISED + b"\r\n[")
    assert (answer.status, answer.elapsed < 3) == (408, True)


def test_a_head_has_a_length(attacker: Attacker) -> None:
    answer = attacker.send(b"GET / HTTP/1.1\r\n", *[b"x: " + b"y" * 8_000 + b"\r\n"] * 9)
    assert answer.status == 400


def test_an_address_has_a_length(attacker: Attacker) -> None:
    answer = attacker.send(b"GET /", *[b"x" * 8_000] * 9)
    assert answer.status == 400


def test_a_body_that_is_announced_too_long_is_not_read(attacker: Attacker) -> None:
    head = b"POST /e/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n"
    answer = attacker.send(head + AUTHORISED + b"\r\n[")
    assert (answer.status, answer.json()["status"]) == (413, 413)


def test_a_body_that_becomes_too_long_is_not_read_to_its_end(attacker: Attacker) -> None:
    head = b"POST /e/x HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n"
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    answer = attacker.send(head + AUTHORISED + b"\r\n", *[chunk] * 40)
    assert answer.status in (0, 413)  # the connection may be gone before it is read
    assert attacker.ask("GET", "/health").status == 200


def test_who_has_no_key_cannot_make_the_server_read(attacker: Attacker) -> None:
    head = b"POST /v1/durable/runs/x/cancel HTTP/1.1\r\nhost: localhost\r\n"
    answer = attacker.send(head + b"content-length: 99999999\r\n\r\n", b"x" * 1000)
    assert (answer.status, answer.elapsed < 3) == (401, True)


def test_a_compressed_body_is_not_unpacked(attacker: Attacker) -> None:
    bomb = gzip.compress(b"[" * 10_000_000)
    answer = attacker.ask("POST", "/e/x", bomb, KEY, content_encoding="gzip")
    assert (answer.status, "Compressed" in answer.json()["error"]) == (415, True)


@pytest.mark.parametrize(
    "headers",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"content-length: -5\r\n",
        b"content-length: 5 6\r\n",
        b"transfer-encoding: chunked, identity\r\n",
        b"transfer-encoding : chunked\r\n",
    ],
)
def test_a_request_with_two_readings_is_refused(attacker: Attacker, headers: bytes) -> None:
    """Request smuggling: what a proxy in front reads as one request must not be two here."""
    second = b"0\r\n\r\nGET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    answer = attacker.send(b"POST /e/x HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n" + second)
    assert answer.status == 400
    assert b"ok" not in answer.body


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/9.9",
        b"\x00\x01\x02",
        b"get /health",
        b"GET health HTTP/1.1",
        b"GET http://[::1 HTTP/1.1",
        b"CONNECT evil.example:443 HTTP/1.1",
        b"PRI * HTTP/2.0",
        b"GET /\xff\xfe HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_request_is_refused(attacker: Attacker, line: bytes) -> None:
    answer = attacker.send(line + b"\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    assert answer.status in (0, 400, 404)
    assert b"Traceback" not in answer.body


@pytest.mark.parametrize(
    "path",
    [
        "/v1/durable/runs/../../../etc/passwd",
        "/v1/durable/runs/%2e%2e%2f%2e%2e%2fhealth",
        "//v1/durable/runs",
        "/V1/durable/runs",
        "/v1/durable/runs/",
        "/v1/durable/runs/x%00y",
        "/v1/durable/runs/%ff%fe",
        "/v1/durable/runs/%0d%0aset-cookie:%20a=b",
        "/v1/durable/runs/" + "x" * 30_000,
        "/health/",
        "/health%2f",
        "/%2e/health",
        "/v1/durable/runs;x=y",
        "*",
    ],
)
def test_a_tricky_path_leads_nowhere(attacker: Attacker, path: str) -> None:
    for key in ("", KEY):
        answer = attacker.ask("GET", path, key=key, host="evil.example")
        assert answer.status in (400, 401, 404), (path, answer)
        assert "location" not in answer.headers
        assert "set-cookie" not in answer.headers
        assert b"evil.example" not in answer.body
        if answer.body.startswith(b"{"):
            assert answer.json()["status"] == answer.status


@pytest.mark.parametrize("method", ["TRACE", "PUT", "PATCH", "DELETE", "PROPFIND", "OPTIONS"])
def test_a_method_that_a_route_does_not_have_is_refused(attacker: Attacker, method: str) -> None:
    answer = attacker.ask(method, "/health", key=KEY)
    assert (answer.status, answer.json()["status"]) == (405, 405)
    assert KEY.encode() not in answer.body  # TRACE would show it


def test_no_header_of_a_caller_comes_back(attacker: Attacker) -> None:
    answer = attacker.send(
        b"GET /nothing HTTP/1.1\r\nhost: evil.example\r\nx-forwarded-host: evil.example\r\n"
        b"x-forwarded-proto: gopher\r\nconnection: close\r\nx-injected: a\r\n b\r\n\r\n"
    )
    assert answer.status in (400, 404)
    assert b"evil.example" not in answer.body
    assert "x-injected" not in answer.headers


def test_nothing_tells_which_software_answers(attacker: Attacker) -> None:
    assert "server" not in attacker.ask("GET", "/health").headers


def test_more_connections_than_allowed_are_turned_away(attacker: Attacker) -> None:
    with ExitStack() as stack:
        for _ in range(55):
            stack.enter_context(attacker.connect())
        assert attacker.ask("GET", "/health").status == 503
    deadline = time.monotonic() + 5
    while attacker.ask("GET", "/health").status != 200:
        assert time.monotonic() < deadline
