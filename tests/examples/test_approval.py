"""People decide by the links of `examples/approval.py`."""

from __future__ import annotations

import re
import time
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from durable_endpoints.testing import VirtualEngine
from examples.approval import app
from tests.chaos.process import Server

EXPENSE = {"amount": 120, "for": "a whale book"}
APPROVE, REFUSE = {"decision": "approve"}, {"decision": "refuse"}


def test_only_the_link_decides_and_only_once(tmp_path: Path) -> None:
    with (
        Server(tmp_path, app="examples.approval:app", alive="/decisions/x") as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        approved = client.post("/expenses", json=EXPENSE)
        refused = client.post("/expenses", json=EXPENSE)
        assert (approved.status_code, refused.status_code) == (303, 303)
        link, other_link = links(server, 2)

        assert "Approve" in client.get(link).text, "a page, whose opening decides nothing"
        assert client.post(link, data={}).status_code == 400
        assert client.post("/decisions/guessed", data=APPROVE).status_code == 410
        server.kill()
        server.start()
        assert client.post(other_link, data=REFUSE).text == "Thank you."
        answer = client.get(refused.headers["location"])
        assert answer.json() == {"paid": False, "because": "it was refused"}
        assert client.post(other_link, data=APPROVE).status_code == 410

        assert client.post(link, data=APPROVE).text == "Thank you."
        answer = client.get(approved.headers["location"])
        assert answer.json() == {"paid": True, "receipt": "120 paid for a whale book"}


def test_a_link_is_good_for_24_hours(capsys: pytest.CaptureFixture[str]) -> None:
    with VirtualEngine() as engine, TestClient(app) as client:
        client.post("/expenses", json=EXPENSE, follow_redirects=False)
        (link,) = re.findall(r"localhost:8000(/decisions/\S+)", capsys.readouterr().out)
        engine.sync.advance("23h59m")
        assert engine.sync.response() is None
        answer = engine.sync.finish(within="1m")
        assert answer.json() == {"paid": False, "because": "nobody decided within 24 hours"}
        assert client.post(link, data=APPROVE).status_code == 410


def links(server: Server, number: int) -> list[str]:
    """The paths of the links that were printed, when there are that many."""
    while len(found := re.findall(r"localhost:8000(/decisions/\S+)", server.log())) < number:
        time.sleep(0.02)
    return found
