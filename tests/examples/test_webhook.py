"""A provider delivers to `examples/webhook.py`, again and again."""

from __future__ import annotations

import time
from pathlib import Path

import httpx

from tests.chaos.process import Server
from tests.examples.first_lines import commands, type_into_shell

SHELL = commands("webhook")
"""Two deliveries of one event, and before them the function that makes them."""
FUNCTION = SHELL.partition("\ndeliver ")[0]
HANDLED = '{"handled":"evt_1"}'


def test_a_repeated_delivery_has_one_effect_though_the_server_was_killed(tmp_path: Path) -> None:
    with Server(tmp_path, app="examples.webhook:app", alive="/docs") as server:
        answers = type_into_shell(server, SHELL)
        first, again = answers.replace("}", "}\n").splitlines()
        assert first.startswith('{"accepted":')
        assert again in (first, HANDLED), "the same run"
        server.kill()
        server.start()
        while (answer := type_into_shell(server, f"{FUNCTION}\ndeliver evt_1")) != HANDLED:
            assert answer == first
            time.sleep(0.05)
        assert server.log().count("Sending a receipt to ada") == 1


def test_what_is_not_signed_or_too_old_is_refused(tmp_path: Path) -> None:
    with Server(tmp_path, app="examples.webhook:app", alive="/docs") as server:
        notice = {"type": "invoice.paid", "customer": "ada"}
        unsigned: dict[str, str | bytes] = {}
        for headers in (
            unsigned,
            {"webhook-id": "evt_1", "webhook-timestamp": "1", "webhook-signature": "v1,é".encode()},
        ):
            answer = httpx.post(f"{server.url}/webhooks", json=notice, headers=headers)
            assert answer.status_code == 401
        old = FUNCTION.replace("date +%s", "echo 1600000000")
        assert "too old" in type_into_shell(server, f"{old}\ndeliver evt_1")
        other = FUNCTION.replace("invoice.paid", "invoice.sent")
        answers = type_into_shell(server, f"{other}\ndeliver evt_2\n")
        assert answers == '{"ignored":"invoice.sent"}'
