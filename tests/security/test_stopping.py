"""Attacks on the end of a server: what would keep it from ending."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack

from durable_endpoints_server.settings import ServerSettings
from tests.security.attacker import KEY, Attacker
from tests.security.conftest import served
from tests.security.test_foreign_runs import ORIGIN, checkpoint, sleep
from tests.security.test_websocket import open_socket


def test_a_stop_is_not_held_up_by_connections_in_any_state() -> None:
    settings = ServerSettings(signing_keys=(KEY,), app_origins=(ORIGIN,))
    with served(settings) as port, ExitStack() as stack:
        attacker = Attacker(port)
        new = checkpoint(sleep())
        begun = attacker.ask("POST", "/v1/checkpoint", json.dumps(new).encode(), KEY).json()
        output, stream = begun["data"]["token"], begun["data"]["realtime_token"]
        for begin in (
            b"",
            b"GET / HTTP/1.1\r\n",
            b"POST /e/x HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n[",
            f"GET /v1/checkpoint/{new['run_id']}/output?token={output} HTTP/1.1\r\n\r\n".encode(),
            f"GET /v1/realtime/sse?token={stream} HTTP/1.1\r\nhost: x\r\n\r\n".encode(),
        ):
            stack.enter_context(attacker.connect()).sendall(begin)
        for headers in (["content-length: 5"], ["sec-websocket-key: short"], []):
            stack.enter_context(open_socket(attacker, *headers)[0])
        time.sleep(0.2)
        began = time.monotonic()
    assert time.monotonic() - began < 5
