"""A trip at `examples/trip_booking.py` is booked whole or not at all, though the server dies."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import httpx
import pytest

from tests.chaos.process import Server

BOOKED = ["Booked flight", "Booked hotel"]
CANCELLED = ["Cancelled hotel", "Cancelled flight"]


@pytest.mark.parametrize(
    ("card", "deaths", "expected", "answer"),
    [
        ("4242", ["Booked hotel"], [*BOOKED, "Booked payment"], 200),
        ("declined", ["Booked flight", "Cancelled hotel"], BOOKED + CANCELLED, 409),
    ],
)
def test_the_server_is_killed_in_the_middle(
    tmp_path: Path, card: str, deaths: list[str], expected: list[str], answer: int
) -> None:
    trip = {"to": "Reykjavik", "card": card}
    with (
        Server(tmp_path, app="examples.trip_booking:app", alive="/docs") as server,
        ThreadPoolExecutor() as threads,
        httpx.Client(
            headers={"idempotency-key": "one"}, timeout=30, follow_redirects=True
        ) as client,
    ):
        for death in deaths:
            asking = threads.submit(client.post, f"{server.url}/trips", json=trip)
            while death not in said(server):
                time.sleep(0.01)
            server.kill()  # the booking is made, and its step not remembered
            wait([asking])
            server.start()
        response = client.post(f"{server.url}/trips", json=trip)
        assert response.status_code == answer
        assert said(server) == expected
        bookings = sorted((tmp_path / ".durable/bookings").iterdir())
        if answer == 200:
            assert [file.name for file in bookings] == sorted(response.json().values())
        else:
            assert response.json() == {"detail": "Nothing was booked: the card was declined"}
            assert bookings == []


def said(server: Server) -> list[str]:
    """What was booked and cancelled, in that order."""
    lines = re.findall(r"^(Booked|Cancelled) \w+-(\w+)$", server.log(), re.MULTILINE)
    return [f"{what} {thing}" for what, thing in lines]
