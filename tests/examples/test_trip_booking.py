"""A trip at `examples/trip_booking.py` is booked whole or not at all, though the server dies."""

from __future__ import annotations

import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from durable_endpoints.testing import VirtualEngine, survives_crashes
from examples import trip_booking
from tests.chaos.process import Server

BOOKED = ["Booked flight", "Booked hotel"]
CANCELLED = ["Cancelled hotel", "Cancelled flight"]


def test_the_server_is_killed_in_a_booking_and_in_a_cancellation(tmp_path: Path) -> None:
    trip = {"to": "Reykjavik", "card": "declined"}
    with (
        Server(tmp_path, app="examples.trip_booking:app", alive="/docs") as server,
        ThreadPoolExecutor() as threads,
        httpx.Client(
            headers={"idempotency-key": "one"}, timeout=30, follow_redirects=True
        ) as client,
    ):
        for death in ("Booked flight", "Cancelled hotel"):
            asking = threads.submit(client.post, f"{server.url}/trips", json=trip)
            while death not in said(server.log()):
                time.sleep(0.01)
            server.kill()  # it is booked, or cancelled, and its step not remembered
            wait([asking])
            server.start()
        response = client.post(f"{server.url}/trips", json=trip)
        assert response.status_code == 409
        assert response.json() == {"detail": "Nothing was booked: the card was declined"}
        assert said(server.log()) == BOOKED + CANCELLED
        assert list((tmp_path / ".durable/bookings").iterdir()) == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("card", "expected", "answer"),
    [("4242", [*BOOKED, "Booked payment"], 200), ("declined", BOOKED + CANCELLED, 409)],
)
async def test_the_process_is_lost_anywhere(
    card: str,
    expected: list[str],
    answer: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trip_booking, "time", SimpleNamespace(sleep=lambda seconds: None))

    def begin(engine: VirtualEngine) -> None:
        shutil.rmtree(tmp_path / ".durable", ignore_errors=True)
        engine.replace("reference", returns="ref")

    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        response = await client.post("/trips", json={"to": "Reykjavik", "card": card})
        assert said(capsys.readouterr().out) == expected
        return response

    response = await survives_crashes(trip_booking.app, scenario, prepare=begin)
    assert response.status_code == answer


def said(output: str) -> list[str]:
    """What was booked and cancelled, in that order."""
    lines = re.findall(r"^(Booked|Cancelled) \w+-(\w+)$", output, re.MULTILINE)
    return [f"{what} {thing}" for what, thing in lines]
